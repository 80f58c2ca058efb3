"""llama.cpp's GGUF files: tensors, config and tokenizer of a model."""
