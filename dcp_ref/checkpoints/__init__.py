"""What is on disk: a model's weights and config, its tokenizer, and the files that a person names.

Read weights.py (load, save) and files.py; then tokenizer.py, tokenizer_files.py and tokenizer_settings.py. replacing.py
replaces several files as one; hub.py finds and fetches models of the Hugging Face hub; inputs.py reads files that a
person names; pictures.py draws; official.py reads the state dicts of the paper's own code.
"""
