"""VLMEvalKit's interface as its adapter and its run.py use it, for machines without.

Only what is documented: `vlm.base.BaseModel.generate` normalises and checks a message
before `generate_inner`, `config.supported_VLM` makes models by name, and
`dataset.DATASET_TYPE` says what a data set is.
"""
