"""`fsl completion`: the script that makes a shell complete the words of ``fsl``; it asks ``fsl completion for WORDS``."""

from __future__ import annotations

from collections.abc import Sequence

from fsl_cli.errors import FslError, close_match
from fsl_cli.settings.completion import SHELLS, completions
from fsl_cli.settings.help_text import USAGE

_BASH = r"""
_fsl() {
    local line=${COMP_LINE:0:COMP_POINT} word kept each
    local -a words=()
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]}-1]}
    kept=${word%"${word##*[=:]}"} # bash replaces only what follows the last = or :
    COMPREPLY=()
    while IFS= read -r each; do
        [[ $each == *[=/] ]] || each+=" "
        COMPREPLY+=("${each#"$kept"}")
    done < <(fsl completion for "${words[@]:1}" 2>/dev/null)
}
complete -o nospace -F _fsl fsl
"""

_ZSH = r"""
#compdef fsl
_fsl() {
    local -a found
    found=("${(@f)$(fsl completion for "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -S '' -- ${(M)found:#*[=/]}
    compadd -- ${found:#*[=/]}
}
compdef _fsl fsl
"""

_FISH = r"""
complete -c fsl -f -a '(fsl completion for (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
"""

_SCRIPTS = dict(zip(SHELLS, (_BASH, _ZSH, _FISH), strict=True))


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    if arguments[:1] == ["for"]:
        for each in completions(list(USAGE), arguments[1:]):
            print(each)
        return 0
    if len(arguments) != 1:
        raise FslError("which shell?", where="fsl completion", hint=f"one of {', '.join(SHELLS)}")
    if arguments[0] not in _SCRIPTS:
        raise FslError(f"there is no script for {arguments[0]}", where="fsl completion", hint=close_match(arguments[0], SHELLS))
    print(_SCRIPTS[arguments[0]].strip())
    return 0
