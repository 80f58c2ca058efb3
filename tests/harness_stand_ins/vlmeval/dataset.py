"""What a data set is; those that are not known count as multiple choice."""

import warnings

_TYPES = {"MMBench_DEV_EN": "MCQ", "AMBER": "Y/N", "DocVQA_VAL": "VQA", "MMDU": "MT"}


def DATASET_TYPE(dataset):
    if dataset not in _TYPES:
        warnings.warn(f"Dataset {dataset} is a custom one", stacklevel=2)
    return _TYPES.get(dataset, "MCQ")
