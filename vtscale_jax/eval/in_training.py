"""Tasks by name, asked of a model that is being trained.

`config.eval.tasks` names benchmarks and families of Digit Pages, `config.eval.data` is
the folder of the benchmarks' tables. While training, a few items of each give a mean
item score; at the end all items are asked, with a ledger and every file that
`python -m vtscale_jax.eval run` writes, in the run's folder below `benchmarks/`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vtscale_jax.assemble import Parts, prompts_encoding
from vtscale_jax.eval.ask_items import ask_items
from vtscale_jax.eval.run_model import RunModel, model_name
from vtscale_jax.eval.run_tasks import Hosts, run_tasks
from vtscale_jax.eval.tasks_by_name import items_of
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.vlm import ModelConfig

BENCHMARKS = "benchmarks"
QUICK_ITEMS = 32


class TasksInTraining:
    """The tasks of a run. Their tables are read when this is made, so that what is
    wrong with them is found before training. `place` brings a batch to the devices,
    `fetch` a result from them."""

    def __init__(
        self,
        config: ConfigDict,
        parts: Parts,
        model: ModelConfig,
        processes: Hosts,
        *,
        place: Callable[[Any], Any],
        fetch: Callable[[Any], Any],
    ) -> None:
        self._config = config
        self._parts = parts
        self._model = model
        self._place, self._fetch = place, fetch
        self._processes = processes
        names = [name for name in config.eval.tasks.split(",") if name.strip()]
        data = Path(config.eval.data) if config.eval.data else None
        self._tasks = items_of(names, config, data=data, scorer=config.eval.scorer)

    def quick(self, params: dict, num_queries: int) -> dict[str, float]:
        """The mean item score of the first items of each task, as `score/<task>`."""
        model = self._asked(params, num_queries, {})
        scores = {}
        for task in self._tasks:
            few = task.first(QUICK_ITEMS)
            entries = ask_items(model, few, None, [], explain=self._processes.explain)
            scored = few.score([entry.prediction for entry in entries])
            mean = float(np.mean([item.score for item in scored.items]))
            scores[f"score/{task.name}"] = mean
        return scores

    def final(self, params: dict, step: int, folder: RunFolder) -> None:
        """Asks all items and writes the results; goes on where it was interrupted."""
        if not self._tasks:
            return
        config = self._config
        identity = {
            "kind": "run at its end",
            "step": step,
            "num_queries": config.num_queries,
            "trained_inputs": config.inputs,
            "inputs": config.inputs,
            "dtype": self._model.llm.blocks.dtype,
        }
        run_tasks(
            self._asked(params, config.num_queries, identity),
            self._tasks,
            folder.path / BENCHMARKS,
            model_name(folder.path.resolve().name, config, config.inputs),
            self._processes,
        )

    def _asked(
        self, params: dict, num_queries: int, identity: dict[str, Any]
    ) -> RunModel:
        return RunModel(
            params,
            self._model,
            prompts_encoding(self._parts),
            self._parts.layout(num_queries),
            batch_size=self._config.eval.batch_size,
            identity=identity,
            place=self._place,
            fetch=self._fetch,
        )
