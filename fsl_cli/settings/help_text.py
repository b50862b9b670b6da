"""Help: usage, examples, and the options as the config files explain them."""

from __future__ import annotations

from collections.abc import Mapping

from fsl_cli.settings.conf_files import GROUPS, choices, conf_dir

DATA = {  # the commands of fsl data
    "ls": "which data sets are here or packed, their sizes, and how to get the others; downloads and packs nothing",
    "prepare": "download and pack now, which otherwise happens at the start of the first run",
    "verify": "read everything again: counts, checksums, unreadable files, the same example twice, damaged packs",
    "show": "a picture of some classes, of one class or of an episode, and a table of classes with their counts",
}

_EXAMPLES = {
    "train": (
        "fsl train                                       # MAML on glyphs, no download",
        "fsl train algo=maml dataset=omniglot",
        "fsl train experiment=protonet_omniglot_5w1s     # a whole run, pinned",
        "fsl train -m algo=maml,protonet seed=0,1,2      # a sweep, one table at the end",
        "fsl train algo=maml resume=auto hydra.run.dir=outputs/my_run",
    ),
    "eval": (
        "fsl eval run=outputs/train/FOLDER",
        "fsl eval run=outputs/train/FOLDER task.ways=20 task.shots=5 eval.episodes=2000",
        "fsl eval run=outputs/train/FOLDER dataset=omniglot",
        "fsl eval run=outputs/train/FOLDER algo.batch_norm=inductive",
    ),
    "data": (
        "fsl data ls                                             # what is here, what is missing and how to get it",
        "fsl data prepare dataset=folder dataset.root=photos     # pack now, not at the start of the first run",
        "fsl data verify dataset=folder dataset.root=photos task.shots=5 json=report.json",
        "fsl data show dataset=glyphs                            # a contact sheet of some classes",
        "fsl data show dataset=omniglot class=Greek/character01 to=alpha.png",
        "fsl data show dataset=glyphs episode=3 split=train task.shots=5",
    ),
    "ls": ("fsl ls", "fsl ls algo"),
    "new": ("fsl new algo mine", "fsl new backbone wide in=~/research/my_fsl"),
    "doctor": ("fsl doctor",),
    "completion": (
        'eval "$(fsl completion bash)"                     # in ~/.bashrc',
        'eval "$(fsl completion zsh)"                      # in ~/.zshrc, after compinit',
        "fsl completion fish | source                     # in ~/.config/fish/config.fish",
    ),
}

USAGE = {
    "train": "fsl train [-m] [key=value ...]",
    "eval": "fsl eval run=FOLDER [key=value ...]",
    "data": f"fsl data {'|'.join(DATA)} [key=value ...]",
    "ls": f"fsl ls [{'|'.join(GROUPS)}]",
    "new": "fsl new algo|backbone|dataset NAME [in=FOLDER]",
    "doctor": "fsl doctor",
    "completion": "fsl completion bash|zsh|fish",
}


def general(verbs: Mapping[str, str]) -> str:
    """Answer to ``fsl --help``."""
    lines = [
        "fsl: few-shot and meta-learning experiments, with results that can be reproduced and checked.",
        "",
        "usage: fsl COMMAND ...",
    ]
    lines += ["", "commands:", *(f"  {verb:10} {what}" for verb, what in verbs.items())]
    lines += ["", "examples:", *(f"  {line}" for verb in ("train", "eval") for line in _EXAMPLES[verb][:4])]
    lines += ["", "fsl COMMAND --help says more; fsl --version prints the version."]
    return "\n".join(lines)


def of(verb: str, what: str) -> str:
    """Answer to ``fsl VERB --help``."""
    lines = [f"fsl {verb}: {what}", "", f"usage: {USAGE[verb]}", "", "examples:"]
    lines += [f"  {line}" for line in _EXAMPLES[verb]]
    if verb == "train":
        lines += ["", "groups (fsl ls explains them):"]
        lines += [f"  {group}={'|'.join(choices(group))}" for group in GROUPS]
        lines += ["", "settings and their defaults:", *_settings()]
        lines += ["", "fsl train algo=maml --cfg job shows every option of the chosen members."]
        lines += ["Hydra's flags work too, e.g. -m (sweep), --cfg job (show the configuration)."]
    if verb == "data":
        lines += ["", "commands:", *(f"  {name:8} {what}" for name, what in DATA.items())]
        lines += [
            "",
            "dataset=NAME, dataset.*, task.*, data_dir and cache_dir mean what they mean in fsl train. Also:",
            "  verify: json=FILE writes what was found; the exit code is 1 if something is unreadable or damaged, or the task",
            "          cannot be drawn; the same example twice, and an archive other than the published one, are reported only",
            "  show:   class=NAME or episode=NUMBER; split=train|val|test (default: train); to=FILE.png",
        ]
    if verb == "new":
        lines += [
            "",
            "FOLDER (default: my_fsl) is a small package of your own. fsl finds it when FSL_PLUGINS names the folder, or when",
            "it is installed: pip install -e FOLDER.",
        ]
    if verb == "eval":
        lines += [
            "",
            "The run's saved configuration is used; task, eval, hardware, dataset, algo.* and backbone.* may be",
        ]
        lines += ["overridden. hydra.run.dir=FOLDER says where results go (default: outputs/eval/DATE_TIME)."]
    return "\n".join(lines)


def _settings() -> list[str]:
    """The body of ``conf/train.yaml``, which explains every setting, without its Hydra parts."""
    text = (conf_dir() / "train.yaml").read_text(encoding="utf-8")
    body = text[text.index("\ntask:") : text.index("\nhydra:")]
    return [f"  {line}" for line in body.strip().splitlines()]
