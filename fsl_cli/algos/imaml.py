"""iMAML: meta-learning with implicit gradients (Rajeswaran, Finn, Kakade & Levine 2019).

A task is not a fixed number of steps but a problem whose solution stays near the meta-learned theta (section 2.2):

    phi*(theta) = argmin_phi  L_support(phi) + lambda/2 |phi - theta|^2

Where the gradient of that objective is zero, the implicit function theorem gives the derivative of phi*, regardless of how
phi* was found (lemma 1):

    d phi* / d theta = (I + H / lambda)^-1,    H the Hessian of L_support at phi*

The gradient of the outer loss is therefore the solution g of (I + H / lambda) g = grad L_query(phi*). Only products of H
with vectors are needed, and memory does not grow with the number of inner steps.

- The inner problem is solved by ``inner_steps`` steps of ``inner_optimizer``. The implicit gradient is exact only at the
  solution; the logged ``inner_gradient`` says how far from it the steps end. Gradient steps come close when there are
  many of them and ``inner_lr`` is below 2 / (lambda + curvature of L_support). ``inner_weight_decay`` w adds w/2 |phi|^2 to
  the inner problem, and so w I to its Hessian.
- The system is solved for each task separately by ``cg_steps`` steps of conjugate gradient (algorithm 2). With
  ``cg_damping`` d its matrix is (1 + d) I + H / lambda, which limits the effect of Hessians at points that are not minima
  yet, and makes g shorter. Where the matrix of a task is not positive along a search direction, the task keeps the g found
  so far; if that happens at the first step, g = grad L_query.
- ``regularization`` is lambda. If it is large, phi stays near theta and g near the gradient of FOMAML. If it is small, the
  support set has more influence and the problem is harder to solve. One step of MAML with alpha = 1 / lambda moves about as
  far as phi*.

Batch normalisation: ``transductive`` normalises a query by its query batch; ``inductive`` by the support set (MetaBN,
Bronskill et al. 2020). The support loss and its Hessian use the statistics of the support set. Scale and shift
are adapted like any other weight, as in the authors' code. When the test has another
number of ways than training, all rows of the head start at the mean of the trained rows.

Deviations from the paper: its Omniglot runs have lambda = 2, 16 inner steps (25 with 20 ways) and 5 steps of conjugate
gradient, as ``experiment=imaml_omniglot_5w1s`` has. The defaults here are what learns fastest on a CPU: a smaller lambda
and 8 inner steps, which do not reach the solution. The Hessian is then not that of a minimum, hence the large
``cg_damping``: g lies between the implicit gradient and that of FOMAML, 1 + d times shorter, which makes no difference to
Adam. Every inner step includes the proximal term, as in the paper. The authors' code takes the steps without it and, in
training, one more on that term alone, phi <- phi - inner_lr * lambda * (phi - theta), after which phi is no solution of the
problem; its tests leave the term out by default. ``proximal=last_step`` does the same, as the experiments do. In the system
it adds 10 to lambda. Lambda is a constant (their code can
learn it), the inner steps are of first order (the paper also has Hessian-free ones), and schedules are shorter. The
initialisation is that of the backbone, and the head starts at zero, as in MAML here; theirs is Xavier's with a gain of 1.73
for convolutions and head, and biases between 0 and 0.05. Tasks whose matrix is not positive are treated as described above,
where the paper assumes that it is.

Logged: ``loss`` and ``accuracy`` on the queries after adaptation; ``cg_residual``, |b - A g| / |b| of the system A g = b
given to conjugate gradient, mean over the tasks, 0 where it is solved; ``inner_gradient``, the distance of the inner steps
from the solution: the norm of the gradient of the inner problem at phi, divided by that of its part lambda (phi - theta),
mean over the tasks, 0 where it is solved.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (3,003 iterations): 89.94 ± 0.50 % (transductive; 95%
t interval over 1,000 test episodes). The paper: 99.16 ± 0.35 %. ``scripts/leaderboard.sh --jobs 2 methods=imaml``

    fsl train algo=imaml dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import BatchNormMode, Step
from fsl_cli.algos.common.gradient_learner import GradientLearner, GradientOptions
from fsl_cli.episodes import Episodes
from fsl_cli.inner.conjugate_gradient import conjugate_gradient, norm
from fsl_cli.inner.engines import EngineName
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.tasks import TaskBatch
from fsl_cli.inner.update_rules import Parameters, Proximal, parameters_in

ProximalTerm = Literal["every_step", "last_step"]


class IMAML(GradientLearner):
    """Meta-learns the centre of a proximal problem by the implicit gradient of its solution.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: width of the head: the classes of a training episode, or the outputs of another problem.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        regularization: lambda, > 0; the larger, the closer a solution stays to theta.
        inner_steps: steps on the inner problem in training, >= 1.
        inner_lr: their step size, > 0.
        cg_steps: steps of conjugate gradient, each with one Hessian-vector product, >= 1.
        cg_damping: d, see the module's docstring, >= 0.
        proximal: ``every_step`` or ``last_step``, see the module's docstring.
        batch_norm: ``transductive`` or ``inductive``, see the module's docstring.
        options: see `GradientOptions`; ``inner_weight_decay`` is w, see the module's docstring.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        regularization: Annotated[float, Gt(0)] = 0.5,
        inner_steps: Annotated[int, Ge(1)] = 8,
        inner_lr: Annotated[float, Gt(0)] = 0.1,
        cg_steps: Annotated[int, Ge(1)] = 2,
        cg_damping: Annotated[float, Ge(0)] = 5.0,
        proximal: ProximalTerm = "every_step",
        batch_norm: BatchNormMode = "transductive",
        **options: Unpack[GradientOptions],
    ) -> None:
        transductive = batch_norm == "transductive"
        super().__init__(backbone, features, ways, inner_steps=inner_steps, transductive=transductive, **options)
        if proximal == "every_step":
            self.rule = Proximal(self.rule.weight_decay, self.rule, regularization)
        self.regularization, self.inner_lr, self.proximal = regularization, inner_lr, proximal
        self.cg_steps, self.cg_damping = cg_steps, cg_damping
        self.set_engine(engine, ways)

    def loss(self, episodes: Episodes) -> Step:
        """Query loss at the solutions; its gradient with respect to theta is the implicit gradient."""
        tasks = self.tasks(episodes)
        with torch.no_grad():
            state = tasks.adapted(self.rule.begin(tasks.start), range(self.inner_steps))
            phi = parameters_in(state)
            if self.proximal == "last_step":
                phi = {
                    name: value + self.inner_lr * self.regularization * (tasks.start[name] - value)
                    for name, value in phi.items()
                }
        phi = {name: value.detach().requires_grad_() for name, value in phi.items()}
        logits = tasks.query_outputs(phi, self.inner_steps)
        losses = self.query_losses(episodes, logits)
        outer = dict(zip(phi, torch.autograd.grad(losses.sum(), list(phi.values())), strict=True))
        implicit, logged = self.implicit_gradient(tasks, phi, outer)
        # Linear in theta; its derivative is the mean of the tasks' implicit gradients.
        linear = torch.stack([(theta * implicit[name].mean(0)).sum() for name, theta in tasks.start.items()]).sum()
        return Step(losses.mean().detach() + (linear - linear.detach()), logits.detach(), logged)

    def implicit_gradient(self, tasks: TaskBatch, phi: Parameters, outer: Parameters) -> tuple[Parameters, dict[str, Tensor]]:
        """Solve (I + H / lambda) g = grad L_query(phi) for each task (algorithm 2).

        Args:
            tasks: the tasks.
            phi: ``[T, ...]`` each, the result of the inner steps.
            outer: ``[T, ...]`` each, the gradient of each task's query loss with respect to its phi.

        Returns:
            g, ``[T, ...]`` each, and metrics to log.
        """
        strength, decay = self.regularization, self.rule.weight_decay
        slope = tasks.gradient(phi, self.inner_steps, first_order=False)

        def product(v: Parameters) -> Parameters:
            # The Hessian is symmetric, so its product with v is the gradient of <slope, v>.
            bent = torch.autograd.grad(
                list(slope.values()), list(phi.values()), [v[name] for name in slope], retain_graph=True, materialize_grads=True
            )
            identity = 1 + self.cg_damping + decay / strength
            return {name: identity * v[name] + each / strength for name, each in zip(phi, bent, strict=True)}

        g, residual = conjugate_gradient(product, outer, self.cg_steps)
        with torch.no_grad():
            pull = {name: strength * (value - tasks.start[name]) for name, value in phi.items()}
            left = {name: slope[name] + decay * value + pull[name] for name, value in phi.items()}
            unsolved = norm(left) / norm(pull).clamp(min=torch.finfo(residual.dtype).tiny)
        return g, {"cg_residual": residual.mean(), "inner_gradient": unsolved.mean()}

    def inner_loop(self, ways: int) -> InnerLoop:
        """See `StepLearner`."""
        return self.descent(self.net.with_ways(ways), self.inner_lr)
