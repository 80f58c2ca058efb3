"""The table of models: a call without arguments makes one."""

supported_VLM = {"llava_v1.5_7b": lambda: None}
