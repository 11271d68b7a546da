"""A variant is trained on its seed's data, and judged by what it did not see, on strict pairs."""

from types import SimpleNamespace

from lewm.analyses.probing import Probing
from lewm.evaluation.tasks import Task
from lewm.experiments import ablations, recipes
from lewm.files import read_json, write_json
from lewm.runs import checkpoints

SPLIT = {"train": [0, 2, 3], "heldout": [1, 4]}
LINE = dict.fromkeys(("latent_std", "effective_rank", "prediction", "copying", "sigreg"), 0.5)


def test_a_row_is_of_its_seed_and_of_what_was_held_out(monkeypatch, tmp_path):
    seen = {"played": []}

    def collect(experiment, data, report):
        seen["collected"] = experiment.collection.seed
        return "episodes"

    def train(model, training, data, run, experiment):
        seen["trained"] = model, training.seed
        write_json(run / checkpoints.EXPERIMENT, {"split": SPLIT})

    def evaluate(model, config, world, episodes, held_out, task, floors):
        def score(policy, strict):
            rate = (0.6 if strict else 0.9) - task.offset / 1000
            return SimpleNamespace(rate=rate, low=rate - 0.1, high=rate + 0.2, episodes=17)

        seen["played"].append((held_out, task))
        return SimpleNamespace(score=score)

    def probe(self, run):
        seen["probed"] = self.seed, run.fit_ids, run.test_ids
        return SimpleNamespace(variables={k: SimpleNamespace(r=r) for k, r in PROBED.items()})

    PROBED = {"x": 0.9, "y": 0.7}
    for name, made in {"collect_episodes": collect, "train": train, "evaluate": evaluate}.items():
        monkeypatch.setattr(ablations, name, made)
    monkeypatch.setattr(ablations, "open_recipe_world", lambda *_: None)
    monkeypatch.setattr(checkpoints, "load", lambda _: None)
    monkeypatch.setattr(checkpoints, "metrics", lambda _: [LINE | {"alarm": "!"}, LINE])
    monkeypatch.setattr(Probing, "run", probe)

    found = ablations.row(recipes.load("two-room-tiny"), "lambda-0.2", 3, tmp_path, 40)
    model, seed = seen["trained"]
    assert seen["collected"] == seed == 3
    assert model.sigreg_weight == 0.2
    tasks = [Task.along(offset, 40, seed=3) for offset in (25, ablations.FAR)]
    assert seen["played"] == [(SPLIT["heldout"], task) for task in tasks]
    assert seen["probed"] == (3, SPLIT["train"], SPLIT["heldout"])
    near, far = (0.6 - offset / 1000 for offset in (25, ablations.FAR))
    for name, rate in (("success", near), ("far", far)):
        assert found[name] == {"rate": rate, "low": rate - 0.1, "high": rate + 0.2, "pairs": 17}
    assert (found["variant"], found["seed"], found["probe_r"]) == ("lambda-0.2", 3, 0.7)
    assert (found["alarms"], found["reports"]) == (1, 2)
    assert read_json(tmp_path / "lambda-0.2-3" / "row.json") == found
    (line,) = ablations.as_table([found])[2:]
    assert "57.5% [47.5, 77.5] | 52.5% [42.5, 72.5]" in line
