"""What the numbers of an analysis say: in a plain paragraph, and in headlines for a table. Words only; nothing is computed.

A paragraph is made of sentences, each a function of the values. Results are read from disk: they may be older than this
module, or hold null where a number was not defined. A sentence that misses a number is left out, and the others stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lewm.contracts import Result
from lewm.stats import p_value

__all__ = ["TITLES", "headlines", "tell"]

TITLES = {
    "planning": "Plans, imagined and carried out",
    "probing": "What the latents know",
    "surprise": "Is it surprised by the impossible?",
    "geometry": "The shape of the latents",
    "decoding": "Looking at what it imagines",
    "economy": "What a frame and a plan cost",
}
"""Of the page's sections, in their order; other analyses follow under their own names."""

MANY = 6
"""Variables named one by one; of more, the best and the worst are."""

Values = Mapping[str, Any]


def tell(result: Result) -> str:
    """A paragraph; "" for an analysis that this module does not know."""
    said: list[str] = []
    for sentence in SENTENCES.get(result.name, ()):
        with suppress(KeyError, IndexError, TypeError, StopIteration):
            said += sentence(_known(result.values))
    return " ".join(said)


def headlines(result: Result) -> dict[str, str]:
    """Name -> number with its interval, as text, for a table that compares runs."""
    told: dict[str, str] = {}
    for headline in HEADLINES.get(result.name, ()):
        with suppress(KeyError, IndexError, TypeError, StopIteration):
            told |= headline(_known(result.values))
    return told


def _known(values: Any) -> Any:
    """Without the keys whose value is null."""
    if not isinstance(values, Mapping):
        return values
    return {key: _known(value) for key, value in values.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------- planning


def _imagined_end(values: Values) -> list[str]:
    last = values["horizon"][-1]
    off = f"{_percent(last['ratio'])} of how far the latent had moved ({_range(last['ratio_interval'], _percent)})"
    if "place_error" in last:
        unit, interval = values["unit"], _range(last["place_error_interval"], "{:.1f}".format)
        off += f", or by {last['place_error']:.1f} {unit} in the world ({interval} {unit})"
    return [
        f"From {values['pairs']} held-out pictures the agent made a plan, and carried it out to its end without looking.",
        f"After {last['steps']} steps the imagined latent was off by {off}.",
        "A plan is chosen for where it is imagined to end, so this is where a model's errors matter most.",
    ]


def _planning_headline(values: Values) -> dict[str, str]:
    last = values["horizon"][-1]
    return {f"imagined off after {last['steps']} steps, of the change": _with(last["ratio"], last["ratio_interval"], _percent)}


# ----------------------------------------------------------------------------------------------------------- probing


def _probed_on(values: Values) -> list[str]:
    return [
        "Nobody told the model these variables.",
        f"A linear probe was fitted on latents of {values['fit_episodes']} episodes and tested on {values['test_frames']:,} "
        f"pictures of {values['test_episodes']} that neither it nor the model saw.",
    ]


def _read_well(values: Values) -> list[str]:
    variables = values["variables"]
    if len(variables) <= MANY:
        told = [f"{name} with r = {_r(s['r'])} (typical error {_unit(s['rmse'], s['unit'])})" for name, s in variables.items()]
        return [f"It reads {_listed(told)}."]
    ordered = sorted((name for name in variables if "r" in variables[name]), key=lambda name: variables[name]["r"])
    worst, best = ordered[0], ordered[-1]
    ends = f"{best} best, with r = {_r(variables[best]['r'])}, and {worst} worst, with r = {_r(variables[worst]['r'])}"
    return [f"Of {len(variables)} variables it reads {ends}."]


def _angles(values: Values) -> list[str]:
    return [
        f"The angle {name} is off by {degrees:.0f} degrees on average, 90 being chance."
        for name, degrees in values["angles"].items()
    ]


def _beside_rivals(values: Values) -> list[str]:
    beside = []
    for rival, words in (("random encoder", "an encoder with random weights"), ("pixels", "averaged pixels")):
        controls = [score.get("controls", {}).get(rival, {}) for score in values["variables"].values()]
        if found := [control["r"] for control in controls if "r" in control]:
            least, most = _r(min(found)), _r(max(found))
            beside.append(f"from {words} r = {least}" + f" to {most}" * (least != most))
    return [f"It reads {_listed(beside)}: only what lies above that was learnt."] if beside else []


def _read_ahead(values: Values) -> list[str]:
    rollout = values["rollout"]
    told = []
    for unit, off in rollout["units"].items():
        imagined, seen = (_unit(off[name][-1], unit) for name in ("rmse", "encoded_rmse"))
        told.append(f"by {imagined} where it is off by {seen} on the frames that came")
    return [f"On latents predicted {rollout['steps'][-1]} steps ahead the same probe is off {_listed(told)}."] if told else []


def _probing_headline(values: Values) -> dict[str, str]:
    some = list(values["variables"].items())[:MANY]
    return {f"probe r, {name}": _with(score["r"], score["r_interval"], _r) for name, score in some}


# ---------------------------------------------------------------------------------------------------------- surprise


def _edited(values: Values) -> list[str]:
    return [
        f"In {values['episodes']} episodes something that cannot happen happens in the middle: a thing jumps, or changes its "
        "colour.",
        "Surprise is the squared error of the latent that the model predicted for that frame.",
    ]


def _surprised(values: Values) -> list[str]:
    told = []
    for name, edit in values["edits"].items():
        p, area = p_value(edit["t_p"]), _with(edit["auc"], edit["auc_interval"], _two)
        told.append(
            f"{name[:1].upper()}{name[1:]}: {edit['ratio']:.3g} times the surprise of the same frames unedited (p "
            f"{p if p.startswith('<') else '= ' + p}, effect size {edit['effect_size']:.2f}); AUC {area} against normal frames."
        )
    return told


def _false_alarms(values: Values) -> list[str]:
    found = values["false_alarms"]
    nominal, rate = _percent(found["nominal"]), _with(found["rate"], found["interval"], _percent)
    return [f"A threshold set for {nominal} false alarms on half of the episodes gives {rate} on the other half."]


def _warned(values: Values) -> list[str]:
    return [f"To be read with care: {values['warning']}."] if values["warning"] else []


def _surprise_headline(values: Values) -> dict[str, str]:
    return {f"surprise AUC, {name}": _with(e["auc"], e["auc_interval"], _two) for name, e in values["edits"].items()}


# ---------------------------------------------------------------------------------------------------------- geometry


def _straight(values: Values) -> list[str]:
    found = values["straightness"]
    rivals = {
        "of an encoder with random weights": "random_encoder",
        "of the pixels": "pixels",
        "of the true states": "states",
    }
    beside = [f"{found[key]['value']:.2f} {words}" for words, key in rivals.items() if found.get(key)]
    own = f"{found['value']:.2f} ({_range(found['interval'], _two)})"
    return [f"The straightness of its paths is {own}, 1 being a straight line" + f"; {_listed(beside)}." * bool(beside)]


def _straightened(values: Values) -> list[str]:
    (_, before), (update, after) = values["straightness"]["curve"][0], values["straightness"]["curve"][-1]
    return [f"Over {update:,} updates of training it went from {before:.2f} to {after:.2f}."]


def _gaussian(values: Values) -> list[str]:
    found = values["isotropy"]
    inside = found["null_low"] <= found["statistic"] <= found["null_high"]
    verdict = "no sign that the cloud is not Gaussian" if inside else "the cloud is not quite Gaussian"
    null = f"{found['null_low']:.2f} to {found['null_high']:.2f}"
    return [f"The SIGReg statistic is {found['statistic']:.2f}, of Gaussian samples of that size {null}: {verdict}."]


def _dimensions(values: Values) -> list[str]:
    rank, directions = f"{values['effective_rank']:.1f}", values["dims_99"]
    return [f"Of {values['latent_dim']} dimensions {rank} are in use (effective rank); {directions} hold 99% of the variance."]


def _saturates(values: Values) -> list[str]:
    names = {"l2": "Distance in latent space", "temporal": "The fitted temporal distance"}
    return [
        f"{names.get(cost, cost)} comes to 90% of its plateau {found['offset']:.0f} env steps from the goal, where even growth "
        f"would after {found['linear']:.0f}."
        for cost, found in values["saturation"].items()
    ]


def _open_loop(values: Values) -> list[str]:
    loop = values["open_loop"]
    last = list(loop)[-1]
    share = _percent(loop[last]["error"] / max(loop[last]["copy"], 1e-12))
    worse = values.get("open_loop_not_better_from")
    told = f"Along recorded actions, {last} blocks ahead, the squared error is {share} of that of predicting no change"
    return [told + ("." if worse is None else f"; from block {worse} on it is not shown to be less.")]


def _geometry_headline(values: Values) -> dict[str, str]:
    straight, found = values["straightness"], values["isotropy"]
    return {
        "straightness": _with(straight["value"], straight["interval"], _two),
        "effective rank": f"{values['effective_rank']:.1f} of {values['latent_dim']}",
        "SIGReg statistic (if Gaussian)": f"{found['statistic']:.2f} ({found['null_low']:.2f} to {found['null_high']:.2f})",
    }


# ---------------------------------------------------------------------------------------------------------- decoding


def _decoded(values: Values) -> list[str]:
    found = values["reconstruction"]
    own = f"{_tenths(found['decoder']['share'])} of the error of the mean picture"
    nearest, other = (_tenths(found[name]["share"]) for name in ("nearest", "other latents"))
    return [
        "A decoder was fitted to the frozen latents, for looking only: it takes no part in training or planning.",
        f"Of {values['test_frames']} held-out frames it leaves {own} ({_range(found['decoder']['share_interval'], _tenths)}); "
        f"the nearest frame that it learnt from leaves {nearest}, and with the latents of other frames it would be {other}.",
    ]


def _imagined_pictures(values: Values) -> list[str]:
    found, steps = values["imagination"], values["horizon"] * values["frameskip"]
    imagined, kept, seen = (_percent(found[name]["share"][-1]) for name in ("imagined", "copy", "encoded"))
    return [
        f"After {steps} imagined steps the drawn picture is off by {imagined} of that error; if the first frame were kept it "
        f"would be {kept}, and {seen} is the decoder's own, on the frames that came."
    ]


def _decoding_headline(values: Values) -> dict[str, str]:
    found = values["reconstruction"]["decoder"]
    return {"decoder error, of the mean picture's": _with(found["share"], found["share_interval"], _tenths)}


# ----------------------------------------------------------------------------------------------------------- economy


def _frame(values: Values) -> list[str]:
    tokens, flops = values["tokens_per_frame"], values["flops"]
    encode, predict = (f"{flops[name] / 1e6:.3g} MFLOP" for name in ("encode", "predict"))
    size = f"{tokens} token{'s' * (tokens != 1)}, {values['latent_numbers']} numbers"
    size += f", {values['bytes_per_frame']['latent']:,} bytes"
    return [f"A frame is {size}; to encode it takes {encode}, to predict the next one {predict}."]


def _plans(values: Values) -> list[str]:
    return [
        f"A plan by {name} takes {_time(plan['seconds'])} here ({values['hardware']}, median of {plan['plans']}) "
        f"and predicts {plan['predictor_calls']:,} latents."
        for name, plan in values["plans"].items()
    ]


def _others(values: Values) -> list[str]:
    return ["What others published, or what is estimated of them, was not measured here and is marked so."] * bool(
        values["published"]
    )


def _economy_headline(values: Values) -> dict[str, str]:
    frame = {"MFLOP per predicted frame": f"{values['flops']['predict'] / 1e6:.3g}"}
    return frame | {f"a plan by {name}": _time(plan["seconds"]) for name, plan in values["plans"].items()}


SENTENCES: dict[str, tuple[Callable[[Values], list[str]], ...]] = {
    "planning": (_imagined_end,),
    "probing": (_probed_on, _read_well, _angles, _beside_rivals, _read_ahead),
    "surprise": (_edited, _surprised, _false_alarms, _warned),
    "geometry": (_straight, _straightened, _gaussian, _dimensions, _saturates, _open_loop),
    "decoding": (_decoded, _imagined_pictures),
    "economy": (_frame, _plans, _others),
}

HEADLINES: dict[str, tuple[Callable[[Values], dict[str, str]], ...]] = {
    "planning": (_planning_headline,),
    "probing": (_probing_headline,),
    "surprise": (_surprise_headline,),
    "geometry": (_geometry_headline,),
    "decoding": (_decoding_headline,),
    "economy": (_economy_headline,),
}


# ------------------------------------------------------------------------------------------------------------- words


def _r(value: float) -> str:
    """Four digits near 1, where two would say nothing."""
    return f"{value:.4f}" if value > 0.99 else f"{value:.2f}"


def _unit(value: float, unit: str) -> str:
    return f"{value:.2g} {unit}".strip()


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _tenths(value: float) -> str:
    return f"{100 * value:.1f}%"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _range(interval: Sequence[float], form: Callable[[float], str]) -> str:
    return f"95% interval {form(interval[0])} to {form(interval[1])}"


def _with(value: float, interval: Sequence[float], form: Callable[[float], str]) -> str:
    return f"{form(value)} [{form(interval[0])} to {form(interval[1])}]"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
