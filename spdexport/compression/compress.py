"""The whole of ``compress``: data and model read, forms searched, the file written by ``convert`` and judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from spdexport.compression.bounds import CONFIDENCE, supported
from spdexport.compression.budgets import Budget, CostKind, LossKind, budget_of
from spdexport.compression.cache import Cache
from spdexport.compression.combinations import Combining
from spdexport.compression.data import read_sets
from spdexport.compression.dense_model import batch_of, dense_model, some_of
from spdexport.compression.execution import Shelf
from spdexport.compression.losses import LOSSES
from spdexport.compression.lowering import Lowering, Wanted
from spdexport.compression.metric_files import UserMetric, metric_hash
from spdexport.compression.result import Compression, Judged, Searched
from spdexport.compression.running import DenseAnswers
from spdexport.compression.search import Search
from spdexport.compression.timing import paired
from spdexport.compression.told import combinations, layers, points, with_reasons
from spdexport.cost import MacsCost, ParameterCost
from spdexport.engine.engines import engine_named
from spdexport.errors import UsageError
from spdexport.files.atomic import check_folder
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import load_onnx
from spdexport.files.scratch import scratch_folder
from spdexport.names import count
from spdexport.options import Options
from spdexport.ort.providers import provider_named
from spdexport.overwriting import check_overwriting, output_paths
from spdexport.pipeline import Conversion, convert
from spdexport.planning import Objective
from spdexport.routes import is_onnx
from spdexport.sources.chains import write_chains
from spdexport.steps import Remark
from spdexport.verification.data_feeds import LABELS, data_feeds
from spdexport.verification.ports import input_ports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.compression.combinations import Combinations
    from spdexport.compression.data import Data, Samples, Sets
    from spdexport.compression.dense_model import DenseModel
    from spdexport.compression.search import Found, Trial
    from spdexport.conv import Array
    from spdexport.cost import CostModel
    from spdexport.loading.model import ExampleInputs
    from spdexport.loading.source import Source
    from spdexport.options import OptionsDict
    from spdexport.ort.timing import Ratio

Progress = Callable[[str], None]

CHECKED, CHECKED_NUMBERS = 16, 1 << 20
"""Samples of the test set that the file is checked on, at most, and the numbers that they may be."""

TRIAL_SECONDS = 2.0
"""How long the time of a choice is measured while choices are looked for."""

DECIDED = ("edit", "form", "rank", "energy", "max_error", "plan", "delta", "gates")
"""Options of ``convert`` that the search decides about."""

SEARCHED = ("layers", "exclude", "optimize_for", "components", "masks", "mask_threshold")
"""Options of the search that the conversion to what it found has no use for."""


def compress(
    source: Source,
    output: str | Path | Sequence[str | Path],
    *,
    data: Data,
    selection: Data | None = None,
    test: Data | None = None,
    calibration_samples: int | None = None,
    max_top1_drop: float | None = None,
    max_relative_l2: float | None = None,
    max_kl: float | None = None,
    metric: str | None = None,
    max_metric_drop: float | None = None,
    latency: float | None = None,
    macs: float | None = None,
    size: float | None = None,
    cache: str | Path | None = None,
    engine: str = "local",
    save_components: str | Path | None = None,
    save_plan: str | Path | None = None,
    quantize: str = "none",
    dtype: str = "float32",
    verify: bool = True,
    progress: Progress = lambda _: None,
    **options: Unpack[OptionsDict],
) -> Compression:
    """Find the cheapest forms of a model's layers within a budget, and convert it to them.

    Exactly one budget is given: a loss that is not to be exceeded, of which a bound is kept that holds for data to
    come, or a cost relative to the dense model's, at which the least is lost.

    Args:
        source: As for ``convert``.
        output: As for ``convert``.
        data: The samples: a .npz, .npy or safetensors file, a folder of such, arrays by name, or one array; ``labels``
            among them are the right answers, and without them the dense model's own count.
        selection: Samples that decide which choice keeps the budget; None to take them from ``data``.
        test: Samples that the result is judged on; None to take them from ``data``.
        calibration_samples: How many samples of ``data`` weights are fitted on.
        max_top1_drop: How much of the accuracy may be lost: 0.01 is one point.
        max_relative_l2: How much the outputs may change, in relative norm.
        max_kl: The mean KL divergence of the softmax, in nats.
        metric: A measure of your own, ``FILE.py:NAME``: called with a batch's outputs and labels, it returns a number
            for each sample, of which more is better.
        max_metric_drop: How much of that may be lost, in the mean.
        latency: The time that the file may take, relative to dense; forms are chosen by measured time.
        macs: The multiply-accumulates that it may have, relative to dense.
        size: The numbers that it may store, relative to dense.
        cache: A folder where work is kept, so that it resumes where it was interrupted.
        engine: Where samples run: ``local``, or ``ray`` for workers of Ray. Weights are fitted in this process.
        save_components: A safetensors file for the forms; ``convert`` with ``components`` makes the same file of it.
        save_plan: As for ``convert``.
        quantize: ``int8`` for a result of eight bits, within the same budget; ``auto`` for one where that is best; else
            ``none``.
        dtype: ``float16`` for a result in half precision, within the same budget.
        verify: As for ``convert``.
        progress: Told what is being done.
        **options: See ``spdexport.Options``; those that the search decides about are refused.

    Raises:
        UsageError: Options that do not go together, no budget or several, or one that the samples cannot support.
        InputError: A file that cannot be used.
        ModelError: The model cannot be traced or exported.
        OutputError: An output cannot be written.
    """
    budget = budget_of(
        metric=metric, max_top1_drop=max_top1_drop, max_relative_l2=max_relative_l2, max_kl=max_kl,
        max_metric_drop=max_metric_drop, latency=latency, macs=macs, size=size,
    )  # fmt: skip
    paths = {"source": source, "output": output, "save_plan": save_plan, "save_components": save_components}
    check_overwriting({**paths, "data": data, "selection": selection, "test": test, **options}, verify=verify)
    _check(options)
    _check_sets(data, selection, test)
    for path in (*output_paths(output), save_plan, save_components):
        if path is not None:
            check_folder(Path(path))
    wanted = Wanted.of(quantize, dtype)
    if wanted is not None and output_paths(output)[1] is not None:
        raise UsageError(
            f"No torch program stores numbers as {wanted.storage}.",
            where="--output",
            hint="Write an ONNX file alone, or leave out --quantize and --dtype.",
        )
    workers = engine_named(engine)
    loss = UserMetric(spec=metric) if metric is not None else LOSSES[budget.loss or LossKind.RELATIVE_L2]
    progress("reading the data")
    seed = options.get("seed", 0)
    sets = read_sets(data, selection, test, calibration=calibration_samples, seed=seed)
    shows = _support(budget, sets)
    progress(Remark(shows or sets.told))
    example = some_of(sets.calibration.batches())
    if not {"inputs", "input_shape"} & options.keys():
        options = {**options, "inputs": _inputs(sets.test, _fixed_batch(source))}
    # The search chooses among forms, by whatever is to be least.
    chosen = Options.of({**options, "form": "auto"})
    with scratch_folder() as folder, workers.running():
        dense = dense_model(source, chosen, example, progress)
        feeds = {name: array[:1] for name, array in data_feeds(dense.ports, example, "the data").items()}
        if dense.batch is not None:
            feeds = data_feeds(
                dense.ports, {n: np.resize(a, (dense.batch, *a.shape[1:])) for n, a in example.items()}, ""
            )
        cost = _cost(budget, chosen, progress)
        settings = {
            "source": dense.hashes,
            "data": sets.hashes,
            "sets": sets.told,
            "layers": [site.name for site in dense.sites],
            "foreign": None if options.get("masks") is None else sha256_file(str(options["masks"])),
            "loss": loss.title,
            "metric": metric and metric_hash(metric),
            "cost": cost.name,
            "lane": chosen.lane_width,
            "seed": seed,
        }
        search = Search(
            dense,
            sets,
            loss=loss,
            cost=cost,
            lane=chosen.lane_width,
            folder=folder,
            seed=seed,
            progress=progress,
            foreign=dense.foreign,
            time=lambda model: paired(model, dense.model, feeds, seed=seed, seconds=TRIAL_SECONDS).median,
            engine=workers,
            cache=Cache.of(None if cache is None else Path(cache), settings, progress),
        )
        found = search.run(budget)
        combined, lowering = None, None
        if wanted is None:
            taken, timing, kept_dense = _never_slower(dense, search, found, budget, chosen, feeds)
        else:
            combined = Combining(
                search,
                found,
                budget,
                wanted,
                objective=chosen.optimize_for,
                feeds=feeds,
                seed=seed,
                progress=progress,
            ).run(Lowering(dense=dense, samples=sets.calibration, storage=wanted.storage))
            taken, lowering, timing, kept_dense = _of_combined(combined)
        given: dict[str, Any] = {name: value for name, value in options.items() if name not in SEARCHED}
        if taken is None:
            given["form"] = "dense"
        else:
            file = Path(save_components) if save_components is not None else folder / "forms.safetensors"
            write_chains(file, {name: dense.in_source(search.site(name), form) for name, form in taken.forms.items()})
            given["components"] = file
        if lowering is not None:
            progress(f"calibrating {lowering.storage}")
            plain = convert(source, folder / "float32.onnx", verify=False, **given)
            given["precision"] = lowering.precision(load_onnx(plain.outputs[0]))
        conversion = convert(source, output, save_plan=save_plan, verify=verify, progress=progress, **given)
        written = next((path for path in conversion.outputs if path.suffix == ".onnx"), None)
        judged = None
        if written is not None:
            progress(f"judging the file on {count(len(sets.test), 'sample')}")
            answers = DenseAnswers(dense, sets.test, Shelf(folder))
            lost = search.judged(written, "judging the file", answers=answers)
            judged = Judged(interval=lost.interval(), samples=len(sets.test), labelled=sets.test.labels is not None)
    searched = Searched(
        budget=budget,
        loss=loss.title,
        cost=search.cost_name,
        sets=sets.told + (f"; {shows}" if shows else ""),
        confidence=CONFIDENCE,
        points=points(search.trials, taken),
        layers=layers(search, found, taken),
        test=judged,
        timing=timing,
        kept_dense=kept_dense,
        combinations=combinations(combined),
        least="" if combined is None else combined.least,
        storage=None if lowering is None else lowering.storage.value,
        not_lowered=None if combined is None else combined.refused,
    )
    own = {field.name: getattr(conversion, field.name) for field in fields(Conversion)}
    own["hashes"] = {**conversion.hashes, **sets.hashes}
    if taken is not None:
        own |= {"components": "search", "plan": with_reasons(search, found, conversion.plan, dense.skipped)}
    return Compression(**own, search=searched)


def _of_combined(
    found: Combinations,
) -> tuple[Trial | None, Lowering | None, Ratio | None, str | None]:
    """Return the choice to write, what makes it fewer bits, its time, and why it is the dense model if it is."""
    taken = found.taken
    if taken is None:
        return None, None, None, "nothing that was tried keeps the budget for less than the dense model"
    return taken.trial, taken.lowering, taken.timing, None


def _check(options: OptionsDict) -> None:
    if given := [name for name in DECIDED if options.get(name) is not None]:
        raise UsageError(
            "The search decides that.",
            where=f"--{given[0].replace('_', '-')}",
            hint="Leave the option out, or convert with it.",
        )


def _check_sets(data: Data, selection: Data | None, test: Data | None) -> None:
    """Refuse samples that are to judge what was chosen on the same ones."""
    given = {"--data": data, "--selection": selection, "--test": test}
    seen: dict[Path, str] = {}
    for option, path in given.items():
        if not isinstance(path, str | Path):
            continue
        name = seen.setdefault(Path(path).resolve(), option)
        if name != option:
            raise UsageError(
                f"{Path(path).name} is given twice, and a result holds only on samples that did not choose it.",
                where=f"{name} and {option}",
                hint=f"Give other samples, or leave {option} out: it is divided from --data then.",
            )


def _fixed_batch(source: Source) -> int | None:
    """The only batch that an ONNX source takes; None where it takes any, or is traced."""
    if not is_onnx(source):
        return None
    return batch_of(input_ports(load_onnx(Path(str(source)))))


def _inputs(samples: Samples, fixed: int | None) -> ExampleInputs:
    """A few samples without labels, with which the model is traced and the file is checked."""
    from spdexport.loading.inputs import inputs_from_arrays  # needs torch, as forms of files do

    batch = {
        name: array for name, array in next(iter(samples.batches(max(CHECKED, fixed or 0)))).items() if name != LABELS
    }
    each = sum(array[0].size for array in batch.values())
    number = fixed or max(min(CHECKED, CHECKED_NUMBERS // max(each, 1)), 2)
    # Of a batch of fixed size, what is missing is repeated.
    return inputs_from_arrays({n: np.resize(a, (number, *a.shape[1:])) for n, a in batch.items()}, samples.where)


def _support(budget: Budget, sets: Sets) -> str:
    """Return how fine a budget of accuracy the samples show, in a sentence; nothing for other budgets.

    Raises:
        UsageError: No result on so many samples could be shown to keep the budget.
    """
    if budget.loss is not LossKind.TOP1:
        return ""
    if not budget.limit:
        raise UsageError(
            "No number of samples shows that nothing is lost.",
            where="--max-top1-drop 0",
            hint="Give a budget above 0, such as 0.5%.",
        )
    found = supported(len(sets.selection), budget.limit)
    if not found.shows:
        needed = math.ceil(math.log(1 - found.confidence) / math.log(1 - min(budget.limit, 0.999)))
        raise UsageError(
            f"{count(found.samples, 'sample')} cannot show a drop of {budget.limit:.3g}: {found.least:.2g} is the "
            "least that they could, of a network that answers alike on all of them.",
            where="--max-top1-drop and the selection set",
            hint=f"Give {needed} samples for selection at least, or a larger budget.",
        )
    return (
        f"{found.samples} samples of the selection set show {budget.limit:.2%} to within {found.within:.2%} "
        f"({found.confidence:.0%} confidence)"
    )


def _cost(budget: Budget, options: Options, progress: Progress) -> CostModel:
    """What is to be least: what the budget is of, or what the user optimizes for."""
    if options.optimize_for is Objective.LATENCY:
        from spdexport.latency import LatencyCost  # brings measuring

        return LatencyCost(provider=provider_named(options.target), told=progress)
    if budget.cost is CostKind.SIZE or options.optimize_for is Objective.PARAMS:
        return ParameterCost()
    # A budget of MACs is one of those that the report counts, channel by channel.
    return MacsCost(lane=1, balance=0) if budget.cost is CostKind.MACS else MacsCost(lane=options.lane_width)


def _never_slower(
    dense: DenseModel, search: Search, found: Found, budget: Budget, options: Options, feeds: Mapping[str, Array]
) -> tuple[Trial | None, Ratio | None, str | None]:
    """Return the choice to write, its time beside the dense model's where that matters, and why it is dense if so."""
    taken = found.chosen
    if taken is None:
        return None, None, "no choice that was tried keeps the budget for less than the dense model's cost"
    if budget.cost is not CostKind.LATENCY and options.optimize_for is not Objective.LATENCY:
        return taken, None, None
    model = search.placed(taken.forms)
    timing = paired(model, dense.model, feeds, seed=options.seed)
    if timing.median >= 1:
        return None, timing, f"the choice takes {timing.median:.2f} times as long as the dense model, measured in pairs"
    return taken, timing, None
