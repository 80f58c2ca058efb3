"""The paper's fifteen benchmarks: tables, prompts, predictions, VLMEvalKit's files."""
