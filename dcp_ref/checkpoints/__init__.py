"""What is on disk: a model's weights and config, its tokenizer, and the files that a person names.

Read weights.py (load, save) and files.py; then tokenizer.py, tokenizer_files.py and tokenizer_settings.py. replacing.py
replaces several files as one; inputs.py reads files that a person names; pictures.py draws; official.py reads the state
dicts of the paper's own code.
"""
