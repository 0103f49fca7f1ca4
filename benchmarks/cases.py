"""What is compared with what, on which prompt, how often, and what Assay has promised of each figure."""

from dataclasses import dataclass

from benchmarks.promises import Promise
from benchmarks.work import LONG, PAIR, SHORT, Prompt


@dataclass(frozen=True)
class Contestant:
    """A task of one side.

    Attributes:
        side: module of `benchmarks.peers`.
        task: name of the task there.
        every: which cells of a trace's table it fills, all repetitions together: every first, every 37th, ...
            It fills them in turns, one share a repetition. 0: it fills the whole table in every repetition.
    """

    side: str
    task: str
    every: int = 0

    @property
    def label(self) -> str:
        """The name in results and tables."""
        return f"{self.side} {self.task}"


@dataclass(frozen=True)
class Case:
    """Contestants who take turns at the same work.

    Attributes:
        title: what is done, in one line.
        prompt: on which text.
        contestants: who does it; the others' results are held against the first one's.
        promises: the figures wanted.
        repetitions: how many turns each contestant has.
        rehearsals: turns before those, that are not counted.
    """

    title: str
    prompt: Prompt
    contestants: tuple[Contestant, ...]
    promises: tuple[Promise, ...]
    repetitions: int
    rehearsals: int = 0


def _trace(title: str, prompt: Prompt, *, repetitions: int, every: int, times: float) -> Case:
    peers = ("transformer_lens", "nnsight", "hooks")
    return Case(
        title,
        prompt,
        (Contestant("assay", "trace"), *(Contestant(peer, "trace", every) for peer in peers)),
        (
            Promise("ratio", "transformer_lens trace", "assay trace", "at least", times),
            Promise("ratio", "nnsight trace", "assay trace", "at least", times),
            Promise("ratio", "hooks trace", "assay trace"),
            Promise("memory", "assay trace", bound=1.5e9),
        ),
        repetitions,
    )


CASES = {
    "capture": Case(
        "the residual stream after every block, 60 tokens",
        LONG,
        (
            Contestant("assay", "capture"),
            Contestant("assay", "forward"),
            Contestant("transformer_lens", "capture"),
            Contestant("nnsight", "capture"),
        ),
        (
            Promise("ratio", "assay capture", "assay forward", bound=1.05),
            Promise("ratio", "transformer_lens capture", "assay capture"),
            Promise("ratio", "nnsight capture", "assay capture"),
        ),
        repetitions=40,
        rehearsals=3,
    ),
    "lens": Case(
        "logit lens with its forward pass: every layer, every position, top 5; 60 tokens",
        LONG,
        (
            Contestant("assay", "lens"),
            Contestant("assay", "forward_and_unembed"),
            Contestant("transformer_lens", "lens"),
        ),
        (
            Promise("ratio", "transformer_lens lens", "assay lens", "at least", 3.0),
            Promise("ratio", "assay lens", "assay forward_and_unembed", bound=1.2),
        ),
        repetitions=12,
        rehearsals=1,
    ),
    "trace": _trace(
        "causal trace of the state, 10 noise samples; 10 tokens, subject from the second token on",
        SHORT,
        repetitions=5,
        every=1,
        times=5,
    ),
    # 6,480 patches take the peer ten minutes: every twentieth place is timed, the whole is in proportion.
    "head-patches": Case(
        "patching of every head at every position between two prompts; 24 tokens",
        PAIR,
        (Contestant("assay", "head_patches"), Contestant("transformer_lens", "head_patches", 20)),
        (Promise("ratio", "transformer_lens head_patches", "assay head_patches", "at least", 6.0),),
        repetitions=5,
    ),
    "attribution": Case(
        "attribution patching of every head, neuron and residual vector at every position; 24 tokens",
        PAIR,
        (Contestant("assay", "attribution"), Contestant("assay", "forward")),
        (Promise("ratio", "assay attribution", "assay forward", bound=4.0),),
        repetitions=20,
        rehearsals=2,
    ),
    # 1,800 cells would take each peer about an hour: every 37th is timed, the whole is in proportion.
    "late-trace": _trace(
        "causal trace of the state, 10 noise samples; 60 tokens, subject from the 46th token on",
        LONG,
        repetitions=7,
        every=37,
        times=40,
    ),
    "deletions": Case(
        "each of 30 layers left out, 16 inputs of 64 tokens: loss, KL and top-1 agreement at every position",
        SHORT,
        (
            Contestant("depth", "deletions"),
            Contestant("depth", "deletions_by_forwards"),
            Contestant("depth", "thirty_forwards"),
        ),
        (
            Promise("ratio", "depth deletions", "depth deletions_by_forwards", bound=0.6),
            Promise("ratio", "depth deletions", "depth thirty_forwards"),
        ),
        repetitions=3,
    ),
    # A full forward for each of 300 components would take an hour: every 37th is timed, the whole is in proportion.
    "ablation": Case(
        "each of 30 x (9 heads + MLP) ablated, 8 inputs of 32 tokens: loss, KL and top-1 agreement at every position",
        SHORT,
        (Contestant("depth", "ablation"), Contestant("depth", "ablation_by_forwards", every=37)),
        (Promise("ratio", "depth ablation_by_forwards", "depth ablation", "at least", 4.0),),
        repetitions=3,
    ),
    "norms": Case(
        "GPT-2 of six blocks and the same without norms, in every form; log-probabilities of the last of 60 tokens",
        LONG,
        (
            Contestant("norms", "original"),
            Contestant("norms", "folded"),
            Contestant("norms", "fixed"),
            Contestant("norms", "switched_off"),
            Contestant("norms", "identity"),
            Contestant("norm_free", "switched_off"),
            Contestant("norm_free", "folded"),
            Contestant("norm_free", "identity"),
        ),
        (
            Promise("ratio", "norms folded", "norms original", bound=1.05),
            Promise("ratio", "norms fixed", "norms original", bound=1.05),
            Promise("ratio", "norms identity", "norms original"),
            Promise("ratio", "norm_free identity", "norms identity"),
        ),
        repetitions=20,
        rehearsals=2,
    ),
}
