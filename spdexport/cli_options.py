"""The options of the command line, grouped; each command takes the groups it needs.

Click alone is imported here: ``--help`` must answer without torch. The values are checked where they are used, except
for what click can check by itself.
"""

from __future__ import annotations

from pathlib import Path

import click

from spdexport.cli_help import Decorator, together
from spdexport.cli_kinds import Renamed, RenamedKeyword, Share, keyword
from spdexport.report.formats import formats

_PATH = click.Path(path_type=Path)
"""Not ``exists=True``: a file that is missing is an input that cannot be used (4), not a wrong option (2)."""

DELTAS = ("auto", "keep", "drop")
FORMS = ("factorized", "dense", "spatial", "tucker2", "cp", "auto")
OBJECTIVES = ("macs", "params", "latency")
MASK_INPUTS = ("optional", "required")
GATES = ("exact", "local")
SIGMOIDS = ("leaky_hard", "normal", "hard", "upper_leaky_hard", "lower_leaky_hard", "swish_hard", "paper")
ENGINES = ("local", "ray")
PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino", "webgpu")
"""The names of ``ort.providers.PROVIDERS``, which has everything else about them."""


source_argument = click.argument("source", required=False, type=_PATH)

seed_option = keyword(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random number."
)


trust_option = keyword(
    "--trust",
    "--allow-pickle",
    "trust",
    cls=RenamedKeyword,
    is_flag=True,
    help="Run code that the file brings: pickled objects, TorchScript with effects, programs that are no plain data.",
)

_input_shape_option = keyword(
    "--input-shape",
    multiple=True,
    metavar="SHAPE",
    help="Example input as [NAME=]2x3x32x32[:dtype]. Repeatable.",
)
input_options = together(
    "Example inputs",
    _input_shape_option,
    keyword(
        "--inputs",
        type=_PATH,
        help="Example inputs, to trace and check with: .npz, .safetensors or weights-only .pt. Where there is --data, "
        "its first samples are taken.",
    ),
)
"""What tells the inputs."""


def _model_options(inputs: Decorator) -> Decorator:
    return together(
        "The model, and how it is traced",
        keyword(
            "--factory",
            metavar="SPEC",
            help="A callable that returns the module, or (module, example inputs): FILE.py:NAME or "
            "package.module:NAME.",
        ),
        keyword(
            "--state-key",
            metavar="KEY",
            help="Which state dict of a checkpoint that holds several, such as state_dict_ema; ema.model for one "
            "inside.",
        ),
        inputs,
        trust_option,
        seed_option,
        keyword(
            "--dynamic-batch/--static-batch", default=True, show_default=True, help="Let axis 0 of the inputs change."
        ),
        keyword(
            "--dynamic",
            multiple=True,
            metavar="NAME:AXIS=DIM[:LEAST..MOST]",
            help="A further dynamic axis, and the sizes it is to have. Repeatable.",
        ),
    )


model_options = _model_options(input_options)
"""What tells the model and how it is traced."""

data_model_options = _model_options(_input_shape_option)
"""The same where ``--inputs`` is an older name of ``--data``."""


def data_option(help: str, *, required: bool = True, once_inputs: bool = False) -> Decorator:  # noqa: A002  (as click's)
    """Return ``--data``: samples, of which there may be many, and which may be larger than memory.

    Args:
        help: What it says.
        required: Whether it has to be given.
        once_inputs: Whether it was called ``--inputs`` before, which works still.
    """
    names = ("--data", "--inputs", "data") if once_inputs else ("--data",)
    return click.option(*names, cls=Renamed, required=required, type=_PATH, help=help)


sigmoid_option = keyword(
    "--sigmoid",
    type=click.Choice(SIGMOIDS),
    help="The sigmoid of a run's causal-importance functions, where no configuration is beside the checkpoint.",
)

delta_option = keyword(
    "--delta",
    type=click.Choice(DELTAS),
    default="auto",
    show_default=True,
    help="What V U leaves of a weight. auto: dropped for layers with a mask.",
)

factor_options = together(
    "Components, masks and layers",
    keyword(
        "--components",
        type=_PATH,
        help="V and U for a dense SOURCE: an SPD run, a checkpoint, or a file. Default: the exact SVD.",
    ),
    sigmoid_option,
    keyword(
        "--masks", type=_PATH, help="Fixed masks over components, also by location: .safetensors, .npz, .json, .pt."
    ),
    keyword(
        "--edit",
        type=_PATH,
        metavar="F.json",
        help='Edit components for good: {"layer:3": {"scale": 0}, "layer:7": {"U": [...]}}.',
    ),
    keyword("--mask-threshold", type=float, metavar="T", help="Keep components whose mask is above T."),
    keyword("--keep-masks", is_flag=True, help="Leave the masks visible between V and U."),
    delta_option,
    keyword(
        "--layers",
        multiple=True,
        metavar="PATTERN",
        help="Decompose these layers only, such as 'layer1.*'. Repeatable.",
    ),
    keyword(
        "--exclude", multiple=True, metavar="PATTERN", help="Leave these layers alone, such as 'head*'. Repeatable."
    ),
)
"""What tells the factors."""

form_option = keyword(
    "--form",
    type=click.Choice(FORMS),
    default="factorized",
    show_default=True,
    help="dense: one layer with the effective weights. spatial: k x 1 and 1 x k. tucker2: 1x1, k x k, 1x1. "
    "cp: 1x1, depthwise k x k, 1x1. auto: the cheapest form of each layer.",
)
live_mask_options = together(
    "Masks and gates at run time",
    keyword(
        "--runtime-masks",
        multiple=True,
        metavar="PATTERN",
        help="Give these layers an input mask/<layer>, (batch, C); all for every layer with components. Repeatable.",
    ),
    keyword("--runtime-masks-per-location", is_flag=True, help="Make these inputs (batch, *locations, C)."),
    keyword("--runtime-delta-masks", is_flag=True, help="Give them an input delta_mask/<layer> too."),
    keyword(
        "--runtime-routing", is_flag=True, help="And an input routing/<layer>: where it is 0, the original layer runs."
    ),
    keyword(
        "--mask-inputs",
        type=click.Choice(MASK_INPUTS),
        default="optional",
        show_default=True,
        help="Whether an input that is left out means all ones.",
    ),
    keyword(
        "--gates",
        type=click.Choice(GATES),
        is_flag=False,
        flag_value="exact",
        help="Compute the run's causal importances as masks in the graph. exact: from the dense model, the default; "
        "local: from the masked one. Write --gates=local.",
    ),
    keyword("--gate-threshold", type=float, metavar="T", help="Gates make masks of 1 above T and 0 elsewhere."),
    keyword("--gate-outputs", is_flag=True, help="Give the importances out, as ci/<layer>."),
    keyword("--activation-outputs", is_flag=True, help="Give the activations of V out, as activation/<layer>."),
)
"""What of the masks is known only at run time."""


def objective_option(help: str) -> Decorator:  # noqa: A002  (as click's)
    """Return ``--optimize-for``, which says ``help``."""
    return keyword("--optimize-for", type=click.Choice(OBJECTIVES), default="macs", show_default=True, help=help)


lane_width_option = keyword(
    "--lane-width",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Channels that the target computes together, for counting MACs.",
)

plan_options = together(
    "The form of each layer",
    form_option,
    live_mask_options,
    objective_option("What --form auto makes least; latency is measured."),
    lane_width_option,
    keyword("--rank", multiple=True, metavar="[LAYER=]N", help="Truncate effective weights to rank N. Repeatable."),
    keyword("--energy", type=float, metavar="E", help="Truncate, keeping E of the squared singular values."),
    keyword("--max-error", type=float, metavar="E", help="Truncate, with a relative error of E at most."),
    keyword("--plan", type=_PATH, metavar="F.json", help="Repeat the plan that --save-plan wrote."),
)
"""What decides about the form of each layer."""

in_place_option = click.option(
    "--in-place", is_flag=True, help="Let -o replace the model that is read, once the check has not failed."
)
save_plan_option = click.option("--save-plan", type=_PATH, metavar="F.json", help="Write the plan.")
opset_option = keyword(
    "--opset",
    type=int,
    metavar="N",
    help="The ONNX opset of the file. Default: the exporter's, or that of an ONNX SOURCE.",
)

engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="Where samples run: in this process, or on workers of Ray, whose cluster RAY_ADDRESS names if there is one.",
)
verify_option = click.option("--verify/--no-verify", default=True, show_default=True, help="Check the file written.")
provider_option = click.option(
    "--provider",
    "providers",
    multiple=True,
    type=click.Choice(PROVIDERS),
    help="Check on this ONNX Runtime provider beside the CPU. Repeatable. Default: cuda where it can run.",
)


def report_options(results: str) -> Decorator:
    """Return the options of all reports that tell of these results: ``CHECKS``, ``ABLATIONS`` or ``LISTS``."""
    rows = [row for row in formats().values() if results in row.tells]
    return together(
        "Reports", *(click.option(f"--{r.option}", type=_PATH, metavar=r.metavar, help=r.help) for r in rows)
    )


repro_option = click.option(
    "--repro",
    type=_PATH,
    metavar="F.npz",
    help="Save the worst input with both outputs; verify --inputs F.npz shows it again.",
)
check_options = together(
    "The check",
    keyword("--thorough", is_flag=True, help="Compare the output of every layer too, and leave out no input for time."),
    keyword(
        "--atol",
        type=click.FloatRange(min=0),
        metavar="A",
        help="Allow outputs this absolute error, in the place of what rounding explains.",
    ),
    keyword("--rtol", type=click.FloatRange(min=0), metavar="R", help="The same, relative to the right value."),
    keyword(
        "--max-relative-l2",
        type=Share(),
        metavar="X",
        help="Fail where masks and ranks change more than this in relative norm, on --inputs.",
    ),
    keyword(
        "--max-top1-drop",
        type=Share(),
        metavar="X",
        help="Fail where they cost more than this in accuracy, such as 1%, on --inputs with labels.",
    ),
)
"""How the check is done."""


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[DEBUG] = value


DEBUG = "spdexport.debug"
"""The key under which the context of a whole run keeps ``--debug``."""


def _limits(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    limits = {}
    for text in texts:
        name, _equals, number = text.partition("=")
        if not number.isascii() or not number.isdigit():
            raise click.BadParameter(f"{text!r} is not of the form NAME=N, such as nodes=100000.")
        limits[name] = int(number)
    return limits


limit_option = click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=N",
    callback=_limits,
    help="Read files up to another limit: unpacked, tensors, nodes, trips, code or value. Repeatable.",
)
"""What is read of a file before it is refused, for every command."""


def _configure(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        from spdexport.cli_config import read_config

        context.default_map = read_config(path, context)
    return path


config_option = click.option(
    "--config",
    type=_PATH,
    metavar="F.toml",
    is_eager=True,
    callback=_configure,
    help="Take options from a file, under the same words; the command line goes before it.",
)

talk_options = together(
    "What is said, and limits",
    config_option,
    limit_option,
    click.option(
        "-v", "--verbose", is_flag=True, help="Say more: every layer, every step, what the model's code prints."
    ),
    click.option("-q", "--quiet", is_flag=True, help="Say the verdict alone."),
    click.option(
        "--log-file", type=_PATH, metavar="F", help="Write every step with its time, and the whole report, whatever -q."
    ),
    click.option(
        "--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show the traceback of an error."
    ),
)
"""How much is said."""
