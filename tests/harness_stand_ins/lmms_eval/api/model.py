"""The base of models."""

import abc


class CacheHook:
    def add_partial(self, attr, req, res):
        pass


class lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        pairs = [pair.split("=", 1) for pair in arg_string.split(",") if pair]
        given = {k: int(v) if v.isnumeric() else v for k, v in pairs}
        more = (additional_config or {}).items()
        return cls(**given, **{k: v for k, v in more if v is not None})

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size
