"""The base of models."""

from pathlib import Path


class BaseModel:
    INTERLEAVE = False
    allowed_types = ["text", "image", "video"]

    def use_custom_prompt(self, dataset):
        return False

    def set_dump_image(self, dump_image):
        self.dump_image_func = dump_image

    def generate(self, message, dataset=None):
        items = message if isinstance(message, list) else [message]
        parts = [self._part(item) for item in items]
        assert all(part["type"] in self.allowed_types for part in parts)
        return self.generate_inner(parts, dataset)

    def _part(self, item):
        if isinstance(item, str):
            return {"type": "image" if _is_file(item) else "text", "value": item}
        assert {"type", "value"} <= set(item)
        if item["type"] == "image":
            assert _is_file(item["value"]), item
        return item


def _is_file(text):
    return len(text) < 200 and Path(text).is_file()
