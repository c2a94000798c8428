"""Pre-training steps of one EVE model under different objectives, and with pixel decoders of different depth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from benchmarks.case import TEXTBOOK, Case, Setting, relative_difference
from benchmarks.eve_batches import eve_config, masked_pairs, product
from benchmarks.textbook.equal import gradient_differences
from benchmarks.textbook.eve import PreTraining
from evle.models.eve import EVEForPreTraining

MASKED_SIGNAL = "mlm+mim"
OBJECTIVES = {
    MASKED_SIGNAL: ("mim", "mlm"),
    "mlm+itc+mim": ("mim", "mlm", "itc"),
    "mlm+itc+itm": ("mlm", "itc", "itm"),
    "all four": ("mim", "mlm", "itc", "itm"),
}
"""The sets of objectives that the paper compares (EVE, table 1)."""


@contextmanager
def minimising(model: EVEForPreTraining, names: tuple[str, ...]) -> Iterator[None]:
    """Within it the model minimises only these of its objectives."""
    before = model.config.objectives
    model.config.objectives = names
    try:
        yield
    finally:
        model.config.objectives = before


def objectives_case(setting: Setting, batch: int, with_textbook: bool = True) -> Case:
    """Every set of objectives on one model that has the heads of all."""
    config = eve_config(setting, 224, objectives=OBJECTIVES["all four"])
    model = EVEForPreTraining(config).train()
    inputs = masked_pairs(config, 2 if setting.quick else batch)
    textbook = PreTraining(model).train()

    def step_of(names: tuple[str, ...]) -> Callable[[], None]:
        step = setting.step(model, lambda: model(**inputs).loss)

        def work() -> None:
            with minimising(model, names):
                step()

        return work

    def differences() -> dict[str, float]:
        with minimising(model, OBJECTIVES[MASKED_SIGNAL]):
            ours = model(**inputs).loss
        loss = textbook(**inputs)
        ours.backward()
        loss.backward()
        return {"loss": relative_difference(loss, ours), **gradient_differences(model, textbook)}

    ways = {f"ours, {MASKED_SIGNAL}": step_of(OBJECTIVES[MASKED_SIGNAL])}
    if with_textbook:
        ways[f"{TEXTBOOK}, {MASKED_SIGNAL}"] = setting.step(textbook, lambda: textbook(**inputs))
    ways |= {f"ours, {name}": step_of(names) for name, names in OBJECTIVES.items() if name != MASKED_SIGNAL}
    return Case(ways=ways, product=product(config, batch * config.num_patches), differences=differences, model=model)


def depth_case(setting: Setting, batch: int, depths: tuple[int, ...]) -> Case:
    """Masked signals with the first layers of one decoder."""
    config = eve_config(setting, 224)
    if not setting.quick:
        config.decoder_num_layers = max(depths)
    model = EVEForPreTraining(config).train()
    layers = list(model.decoder.layers)
    inputs = masked_pairs(config, 2 if setting.quick else batch)
    step = setting.step(model, lambda: model(**inputs).loss)

    def step_of(depth: int) -> Callable[[], None]:
        def work() -> None:
            model.decoder.layers = nn.ModuleList(layers[:depth])
            step()

        return work

    ways = {f"ours, decoder of {depth} layers": step_of(depth) for depth in depths}
    return Case(ways=ways, product=product(config, batch * config.num_patches))
