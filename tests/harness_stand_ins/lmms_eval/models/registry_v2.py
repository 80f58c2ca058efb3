"""Models by name, also of other packages."""

import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points

from lmms_eval.api.model import lmms


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class ModelRegistryV2:
    def __init__(self):
        self._manifests = {}

    def load_entrypoint_manifests(self, group="lmms_eval.models"):
        for point in entry_points().select(group=group):
            payload = point.load()
            manifest = payload() if callable(payload) else payload
            assert isinstance(manifest, ModelManifest)
            self._manifests[manifest.model_id] = manifest

    def get_model_class(self, model_name):
        path = self._manifests[model_name].simple_class_path
        module, name = path.rsplit(".", 1)
        found = getattr(importlib.import_module(module), name)
        assert issubclass(found, lmms) and found.is_simple
        return found
