"""One training job, from spec to model folder."""

from typing import Any

from workers.protocol import JobError, emit, ran_out_of_memory
from workers.training.finish import finish
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import join, leave
from workers.training.spec import TrainSpec


def train(spec: TrainSpec) -> dict[str, Any] | None:
    """Run the job; its result on the first rank, None on the others. JobError where it cannot be done."""
    try:
        return _train(spec)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise JobError(
            "The machine ran out of memory outside of the steps, where smaller batches would not help. "
            "Use a smaller preset, a higher zero_stage on more ranks, or a machine with more of it."
        ) from error


def _train(spec: TrainSpec) -> dict[str, Any] | None:
    ranks = join(spec)
    if ranks.is_first:
        emit("progress", progress=0.0, message="Reading the dataset", eta_seconds=None)
    prepared = prepare(spec, ranks)
    loop = Loop(spec, ranks, prepared)
    for note in filter(None, [*prepared.notes, loop.domain_routing.note]):
        loop.teller.note(note)
    progress = loop.run()
    if ranks.is_first:
        emit("progress", progress=1.0, message="Writing the model", eta_seconds=None)
    result = finish(spec, ranks, prepared, progress)
    leave(ranks)
    return result
