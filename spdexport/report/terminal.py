"""Results on standard output: what was done, what it costs, and the verdict."""

from __future__ import annotations

import io
import shlex
from itertools import groupby
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from spdexport.ablation.ablate import Ablations
from spdexport.atlases.result import Atlas
from spdexport.compression.result import Compression
from spdexport.folding import Folding
from spdexport.importance.result import DerivedMasks
from spdexport.laboratory.result import Lab
from spdexport.measuring.bench import Bench
from spdexport.names import count, some
from spdexport.pipeline import Conversion, Inspection
from spdexport.report import ablations, atlases, bench, compression, derived, lab, summary, tables
from spdexport.report.console import SafeConsole, standard_console
from spdexport.report.explain import advice, failing_layers, layer_reason, tolerance
from spdexport.report.headline import Headline, headline, origin
from spdexport.report.numbers import ratio, short, size
from spdexport.text import one_line
from spdexport.verification.result import Approximation, Status, Verification

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, RenderableType

    from spdexport.conv import Skipped
    from spdexport.planning import LayerPlan, Plan
    from spdexport.report.common import Result

_NAMES_SHOWN = 4
"""Names of layers in a list, as long as --verbose is not given."""


class _Page:
    """What a report is written on. Everything from a model or file goes through ``Text``, which knows no markup."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self.console = console
        self.verbose = verbose

    def write(self, what: RenderableType, *, wrap: bool = True) -> None:
        """Print without the spaces that rich fills lines with, which would end up in people's logs and READMEs."""
        with self.console.capture() as capture:
            self.console.print(what, highlight=False, soft_wrap=not wrap)
        for line in capture.get().splitlines():
            # The styles that rich made codes of are read back: as text, its codes would be shown and not obeyed.
            styled = Text.from_ansi(line)
            styled.rstrip()
            self.console.print(styled, highlight=False, soft_wrap=True)

    def line(self, text: str, style: str = "") -> None:
        """Write a paragraph."""
        self.write(Text(one_line(text), style))

    def item(self, text: str) -> None:
        """Write a line of a list, with what is wrapped indented too."""
        self.write(Padding(Text(one_line(text), overflow="fold"), (0, 0, 0, 2)))

    def literal(self, text: str) -> None:
        """Write a path, hash or command, which stays on one line so that it can be copied."""
        self.write(Text(f"  {one_line(text)}"), wrap=False)

    def heading(self, text: str) -> None:
        """Write the title of a section, after an empty line."""
        self.console.print()
        self.line(text, "bold")


def show(result: Result, *, verbose: bool = False, quiet: bool = False, console: Console | None = None) -> None:
    """Print a result.

    Args:
        result: What a command gives.
        verbose: All layers, all names, hashes and versions.
        quiet: The verdict alone, and the edges that decide it if it is not a pass. An inspection has no verdict and
            is shown as always.
        console: Where to; standard output if None.
    """
    page = _Page(console or standard_console(), verbose=verbose)
    if isinstance(result, Bench):
        _bench(page, result)
        return
    if isinstance(result, Ablations):
        _ablations(page, result, quiet=quiet)
        return
    if isinstance(result, Lab):
        _lab(page, result, quiet=quiet)
        return
    if isinstance(result, Atlas):
        _atlas(page, result, quiet=quiet)
        return
    if isinstance(result, DerivedMasks):
        _derived(page, result, quiet=quiet)
        return
    if isinstance(result, Inspection) and not isinstance(result, Conversion):
        _inspection(page, result)
        return
    verification = result if isinstance(result, Verification) else result.verification
    first = headline(result)
    if quiet:
        _quiet(page, first, verification)
        return
    _headline(page, first)
    match result:
        case Verification():
            if first.changes:
                page.console.print()
            _edges(page, result)
        case Conversion():
            if isinstance(result, Compression):
                compression.write(page, result.search)
            _conversion(page, result)
        case Folding():
            _folding(page, result)
    if verification is not None and verification.approximation is not None:
        _approximation(page, verification.approximation)
    _notes(page, [*_own_notes(result), *(verification.notes if verification else ())])
    if verbose:
        hashes = result.artifacts if isinstance(result, Verification) else result.hashes
        _provenance(page, hashes, result.versions, result.seed)
    if verification is not None and not isinstance(result, Verification):
        page.heading("checked edge by edge")
        _edges(page, verification)


def _own_notes(result: Conversion | Inspection | Folding | Verification) -> Sequence[str]:
    return () if isinstance(result, Verification) else result.notes


def as_text(result: Result, *, width: int, verbose: bool = False) -> str:
    """Return a result as `show` prints it, in plain text whatever the environment says of colours."""
    file = io.StringIO()
    show(result, verbose=verbose, console=SafeConsole(file=file, width=width, force_terminal=False, color_system=None))
    return file.getvalue().strip()


def _inspection(page: _Page, result: Inspection) -> None:
    layers = result.plan.layers
    page.line(f"{count(len(layers), 'layer')}, components from {origin(result.components)}", "bold")
    if layers:
        page.console.print()
        page.write(tables.inspected_layers(layers))
        page.line(tables.INSPECTED_LEGEND, "dim")
        page.console.print()
        for said in summary.totals(result.plan):
            page.line(said)
    _left_alone(page, [layer for layer in layers if not layer.is_decomposed], result.plan.skipped)
    _notes(page, result.notes)
    if page.verbose:
        _provenance(page, result.hashes, result.versions, result.seed)


def _conversion(page: _Page, result: Conversion) -> None:
    plan = result.plan
    changed = [layer for layer in plan.layers if layer.is_decomposed]
    if changed:
        page.console.print()
        page.write(tables.converted_layers(changed, verbose=page.verbose))
        for remark in (tables.more_below(changed, verbose=page.verbose), tables.legend(changed)):
            if remark:
                page.line(remark, "dim")
        said = [*summary.trimmed(plan, result.trimming), *summary.gains(plan)]
        if said or summary.dearer(plan, verbose=False):
            page.console.print()
        for one in said:
            page.line(one)
        _if_dearer(page, result)
        _why(page, plan, changed)
    _removed(page, result)
    _left_alone(page, [layer for layer in plan.layers if not layer.is_decomposed], plan.skipped)


def _bench(page: _Page, result: Bench) -> None:
    page.line(bench.title(result), "bold")
    page.console.print()
    page.write(bench.table(result))
    for remark in bench.remarks(result):
        page.line(remark)
    _notes(page, result.notes)
    if page.verbose:
        _provenance(page, {file.name: file.sha256 for file in result.files}, result.versions, result.seed)


def _ablations(page: _Page, result: Ablations, *, quiet: bool) -> None:
    page.line(ablations.title(result), "bold")
    if quiet:
        return
    page.console.print()
    page.write(ablations.table(result, shown=None if page.verbose else ablations.SHOWN))
    for remark in ablations.remarks(result, shown=None if page.verbose else ablations.SHOWN):
        page.line(remark, "dim")
    _notes(page, result.notes)
    if page.verbose:
        _provenance(page, result.hashes, result.versions, 0)


def _atlas(page: _Page, result: Atlas, *, quiet: bool) -> None:
    page.line(atlases.title(result), "bold")
    if quiet:
        return
    page.console.print()
    page.write(atlases.table(result))
    for remark in atlases.remarks(result):
        page.line(remark, "dim")
    _notes(page, result.notes)
    if page.verbose:
        _provenance(page, result.hashes, result.versions, result.seed)
    if result.outputs:
        page.heading("files")
        page.literal(f"{result.outputs[0]}, {size(result.size)}")


def _derived(page: _Page, result: DerivedMasks, *, quiet: bool) -> None:
    page.line(derived.title(result), "bold")
    if quiet:
        return
    page.console.print()
    page.write(derived.table(result))
    page.line(derived.LEGEND, "dim")
    _notes(page, result.notes)
    if page.verbose:
        _provenance(page, result.hashes, result.versions, result.seed)
    if result.outputs:
        page.heading("files")
    for path in result.outputs:
        page.literal(f"{path}, {size(path.stat().st_size)}")


def _lab(page: _Page, result: Lab, *, quiet: bool) -> None:
    page.line(lab.title(result), "bold")
    if not quiet:
        page.console.print()
        page.write(lab.table(result))
        for remark in lab.remarks(result):
            page.line(remark, "dim")
        _notes(page, result.notes)
        if page.verbose:
            _provenance(page, result.hashes, result.versions, 0)
        page.heading("to see it")
    page.literal(f"{lab.SERVE} {shlex.quote(str(result.folder))}")


def _folding(page: _Page, result: Folding) -> None:
    folded = result.folded
    if folded:
        page.heading("folded")
    names = [
        f"{chain.name}: {chain.spec.describe()}, "
        f"MACs at each output location {short(chain.macs_before)} -> {short(chain.macs_after)}"
        for chain in folded
    ]
    for name in names if page.verbose or len(names) <= tables.MANY else names[: tables.SHOWN]:
        page.item(name)
    if len(names) > tables.MANY and not page.verbose:
        page.item(f"and {len(names) - tables.SHOWN} more; --verbose shows all")
    _left_alone(page, [], result.declined)


def _why(page: _Page, plan: Plan, layers: Sequence[LayerPlan]) -> None:
    """Why each layer has its form; of very many, those that the table shows."""
    said = summary.reasons(plan, tables.shown(layers, verbose=page.verbose))
    if said:
        page.heading(f"forms: {how}" if (how := summary.how_chosen(plan)) else "forms")
    for reason in said:
        page.item(reason)


def _removed(page: _Page, result: Conversion) -> None:
    """The layers from which dead channels were removed."""
    found = result.trimming.layers if result.trimming is not None else ()
    if not found:
        return
    page.heading("dead channels removed")
    for layer in found if page.verbose or len(found) <= tables.MANY else found[: tables.SHOWN]:
        page.item(summary.removed(layer))
    if len(found) > tables.MANY and not page.verbose:
        page.item(f"and from {len(found) - tables.SHOWN} more; --verbose shows all")


def _if_dearer(page: _Page, result: Conversion) -> None:
    """Say plainly where the factorized form costs more than the dense one, and what to do about it."""
    said = summary.dearer(result.plan, verbose=page.verbose)
    if not said:
        return
    page.line(said, "yellow")
    file = next((path for path in result.outputs if path.suffix == ".onnx"), None)
    at_run_time = any(decision.run_time is not None for decision in result.plan.decisions)
    if result.verdict is not Status.FAIL and not at_run_time:
        page.line("The cheapest exact form of each layer, with the same masks, is what --form auto writes.")
        if file is not None:
            page.line("One dense layer each is what --form dense writes, and what this gives back:")
            page.literal(f"spdexport fold {shlex.quote(str(file))} -o OUT{file.suffix}")


def _left_alone(page: _Page, layers: Sequence[LayerPlan], skipped: Sequence[Skipped]) -> None:
    """Layers that stay as they are, by reason."""
    why = sorted([(x.reason, x.name) for x in layers] + [(x.reason, f"{x.name} ({x.kind})") for x in skipped])
    if not why:
        return
    page.heading(f"{count(len(why), 'layer')} left as {'it is' if len(why) == 1 else 'they are'}")
    for reason, group in groupby(why, key=lambda pair: pair[0]):
        names = [name for _, name in group]
        page.item(f"{reason}: {some(names, len(names) if page.verbose else _NAMES_SHOWN)}")


def _headline(page: _Page, first: Headline) -> None:
    """The verdict and what has changed, before all else."""
    page.line(first.verdict, tables.STYLES[first.status])
    for said in first.exceeded:
        page.line(f"A limit that you set is exceeded: {said}", tables.STYLES[Status.FAIL])
    for said in first.changes:
        page.item(said)
    for said in first.files:
        page.literal(said)
    for said in first.remarks:
        page.item(said)


def _quiet(page: _Page, first: Headline, verification: Verification | None) -> None:
    """The verdict alone, and what decides it if it is no pass."""
    page.line(first.verdict, tables.STYLES[first.status])
    for said in first.exceeded:
        page.line(f"A limit that you set is exceeded: {said}", tables.STYLES[Status.FAIL])
    if verification is not None and first.status is not Status.PASS:
        page.write(tables.edges(verification.edges))
        _what_to_do(page, verification)


def _edges(page: _Page, verification: Verification) -> None:
    """What was compared, and what to make of it."""
    page.write(tables.edges(verification.edges))
    _what_to_do(page, verification)
    ratios = [edge.noise_ratio for edge in verification.edges if edge.noise_ratio is not None]
    if ratios:
        page.line(tolerance(verification), "dim")
        page.line(f"inputs: {'; '.join(verification.inputs)}", "dim")
    if verification.exceeds and verification.verdict is Status.PASS:
        page.console.print()
        page.line("The file is equivalent to the intended model; it is the intended change that is too large.")


def _what_to_do(page: _Page, verification: Verification) -> None:
    """What a verdict that is no pass means, which layers are concerned, and what to do."""
    wrong = failing_layers(verification)
    if wrong:
        page.heading(f"{count(len(wrong), 'layer')} of {len(verification.layers)} failed")
        for layer in wrong if page.verbose else wrong[:_NAMES_SHOWN]:
            page.item(f"{layer.name}: {layer_reason(layer)}")
        if len(wrong) > _NAMES_SHOWN and not page.verbose:
            page.item(f"and {len(wrong) - _NAMES_SHOWN} more; --verbose shows all")
    hint = advice(verification)
    if hint is not None:
        page.heading(f"{hint.edge}: what this means")
        page.item(hint.means)
        page.item(f"to do: {hint.to_do}")
        page.console.print()


def _approximation(page: _Page, change: Approximation) -> None:
    page.heading("approximation, intended: what masks, ranks and dropped deltas change of the dense model")
    page.item(f"outputs differ by {change.relative_l2:.1%} in norm, at most {ratio(change.max_abs)}")
    if change.agreement is not None:
        page.item(change.agreement)
    if change.top1_before is not None and change.top1_after is not None:
        page.item(f"accuracy on the labels: {change.top1_before:.1%} -> {change.top1_after:.1%}")
    limits = [("relative norm", change.max_relative_l2), ("top-1 drop", change.max_top1_drop)]
    told = " and ".join(f"{what} up to {value:g}" for what, value in limits if value is not None)
    if told and not change.exceeded:
        page.item(f"within the limit that you set: {told}")


def _notes(page: _Page, notes: Sequence[str]) -> None:
    if notes:
        page.heading("notes")
    for note in notes:
        page.item(note)


def _provenance(page: _Page, hashes: Mapping[str, str], versions: Mapping[str, str], seed: int) -> None:
    page.heading("SHA-256")
    for name, value in hashes.items():
        page.literal(f"{value}  {name}")
    page.heading("versions")
    page.item(", ".join(version_texts(versions)))
    page.item(f"seed {seed}")


def version_texts(versions: Mapping[str, str]) -> list[str]:
    """``torch 2.13.0``; ONNX Runtime's version tells its distribution too, which has the same name or a longer one."""
    return [v if v.startswith(name) else f"{name} {v}" for name, v in versions.items()]
