"""What is claimed of LeWorldModel, each claim beside what was measured here: it holds, does not, or
was not tested, and why.

A claim that fails stays in the table as failed; one for which evidence is missing says which
command makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lewm.report import sections, verdicts
from lewm.report.verdicts import HOLDS, UNTESTED, VERDICTS, Evidence, Finding, said

__all__ = ["CLAIMS", "Claim", "Evidence", "Finding", "to_markdown"]

ABLATIONS = "python -m lewm.experiments.ablations --seeds 0 1 2 --variants {}"


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        number: as the project counts them.
        says: the claim in a sentence.
        theirs: the figure that goes with it, or "-".
        command: measures it here.
        judge: evidence -> what was found; None where evidence is missing. Where there is no judge
            the section of an analysis is (see `sections.judge`), and asking it is the command.
    """

    number: int
    says: str
    theirs: str
    command: str = ""
    judge: Callable[[Evidence], Finding | None] | None = None

    @property
    def measured_by(self) -> str:
        """The command that measures it; "" if none does."""
        return self.command if self.judge else f"lewm analyse RUN {sections.judge(self.number)[0]}"

    def found(self, evidence: Evidence) -> Finding:
        """Judge, or say that there is nothing to judge by."""
        judge = self.judge or sections.judge(self.number)[1]
        return judge(evidence) or Finding(
            "", UNTESTED, "Nothing was measured yet: run the command and make this page again."
        )


def to_markdown(evidence: Evidence, command: str) -> str:
    """The page: a table of all claims, and how each verdict came about.

    Args:
        command: that makes this page.
    """
    found = [(claim, claim.found(evidence)) for claim in CLAIMS]
    count = {verdict: sum(f.verdict == verdict for _, f in found) for verdict in VERDICTS}
    lines = [
        "# What is claimed of LeWorldModel, and what was measured here",
        "",
        f"Of {len(found)} claims {', '.join(f'{n}: {verdict}' for verdict, n in count.items())}. "
        f"Made by `{command}`; nothing here is",
        "written by hand. Intervals are 95%, of a bootstrap over episodes or (success) Wilson's, "
        "each for one training seed; several numbers in",
        "a row are training seeds. Our runs are tiny (64 px, minutes on a CPU): what holds here "
        "need not hold at full size, nor the other way round.",
        "",
        "| # | claim | theirs | ours | verdict |",
        "|---|---|---|---|---|",
        *(
            f"| {c.number} | {c.says} | {c.theirs} | {f.ours or '-'} | **{f.verdict}** |"
            for c, f in found
        ),
        "",
        "## Why, and how to measure it again",
        "",
        *(
            f"{c.number}. *{f.verdict}*: {f.why}{f' `{c.measured_by}`' if c.measured_by else ''}"
            for c, f in found
        ),
        "",
        "## Runs",
        "",
        *(
            f"- `{run.label}`: {run.experiment.get('recipe') or 'no recipe'}, world "
            f"{run.experiment.get('world')}"
            for run in evidence.runs
        ),
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------- claims

CLAIMS = (
    Claim(
        1,
        "With the prediction loss alone the encoder collapses; SIGReg alone prevents it, without "
        "EMA, stop-gradient, frozen encoder or reconstruction.",
        "-",
        ABLATIONS.format("base lambda-0"),
        verdicts.collapse,
    ),
    Claim(
        2,
        "SIGReg is linear in the batch, with bounded gradient and curvature.",
        "-",
        "lewm bench sigreg --json FILE",
        verdicts.linear,
    ),
    Claim(
        3,
        "Results are insensitive to the number of projections M and of knots; only lambda matters.",
        "M 64 to 1024 flat; lambda .01 to .2 above 80% on Push-T",
        ABLATIONS.format(
            "base slices-64 slices-256 knots-5 knots-33 lambda-0.001 lambda-0.01 lambda-0.2 "
            "lambda-0.5 lambda-2"
        ),
        verdicts.knobs,
    ),
    Claim(
        4,
        "Lambda can be found by bisection in a logarithmic number of runs.",
        "six coefficients of PLDM: polynomial",
        "lewm tune-lambda two-room-tiny --json FILE",
        verdicts.bisection,
    ),
    Claim(
        5,
        "15 million parameters: 5 M encoder, 10 M predictor.",
        "18.03 M with projectors",
        "",
        verdicts.parameters,
    ),
    Claim(
        6,
        "The batch-norm projector is necessary: after a LayerNorm SIGReg stalls.",
        "-",
        ABLATIONS.format("base no-batch-norm"),
        verdicts.batch_norm,
    ),
    Claim(
        7,
        "AdaLN that begins at zero is what makes training stable.",
        "-",
        ABLATIONS.format("base no-zero-modulation"),
        verdicts.modulation,
    ),
    Claim(
        8,
        "One token per frame, against 196 of DINO-WM, is where the planning speed comes from.",
        "0.98 s against 47 s a plan, 48x; V-JEPA 2-AC about 16 s; Cosmos about 4 min; some "
        "28,000x fewer tokens than Sora",
    ),
    Claim(
        9,
        "The cost of CEM is candidates x horizon x iterations x tokens.",
        "300 x 5 x 10 to 30 x 1",
    ),
    Claim(
        10,
        "Push-T: matches or beats DINO-WM with proprioception, 18 points over PLDM.",
        "96.0 / 92.0 / 78.0%",
        "lewm reproduce push-t-tiny",
        verdicts.success("push-t"),
    ),
    Claim(
        11,
        "Reacher: competitive with planners on foundation features.",
        "86 / 79 / 78%",
        "lewm reproduce reacher-tiny",
        verdicts.success("reacher"),
    ),
    Claim(
        12,
        "Two-Room: loses, because a 192-d Gaussian over-regularises a 3-d world.",
        "87% against 97 and 100%",
        "lewm bench plan --runs RUN --json FILE",
        verdicts.far,
    ),
    Claim(
        13,
        "Cube: loses to DINO-WM's pretrained features.",
        "74 against 86%",
        "lewm reproduce cube-tiny",
        verdicts.success("cube"),
    ),
    Claim(
        14,
        "Physical state is readable by linear and MLP probes.",
        "Push-T r linear / MLP: agent .974 / .998, block .986 / .999, angle .902 / .990; "
        "Two-Room .996 / 1.000",
    ),
    Claim(
        15,
        "Latent paths straighten during training, more than PLDM's, with no term for it.",
        ".6 against .4",
    ),
    Claim(
        16,
        "Surprise spikes at teleports (p < .01) and not at colour changes.",
        "three worlds",
    ),
    Claim(
        17,
        "Open-loop rollouts compound error, so long horizons fail.",
        "success against offset",
    ),
    Claim(
        18,
        "The decoder is for looking only: it takes no part in training.",
        "with a reconstruction loss 86 instead of 96%",
    ),
    Claim(
        19,
        "Trains on one GPU in hours.",
        "-",
        "",
        said(
            "",
            UNTESTED,
            "No GPU was at hand. The tiny recipes train in 1 to 40 minutes on one CPU core.",
        ),
    ),
    Claim(
        20,
        "Deterministic: no uncertainty; needs action labels; no generation, no language.",
        "scope, not a test",
        "",
        said(
            "",
            HOLDS,
            "By construction: `rollout` is a function, `loss` asks for actions, and nothing "
            "draws pictures but the decoder of (18).",
        ),
    ),
)
