"""Items of each task, and files of them."""

import json

LAMBADA = {"text": "He opened the old\ndoor and saw the sea"}
HELLASWAG = {"ctx": "He opens a door.", "endings": ["It shuts.", "He leaves.", "A", "She"], "label": 1}
PIQA = {"goal": "Open a door", "sol1": "Push it.", "sol2": "Eat it.", "label": 0}
WINOGRANDE = {"sentence": "The door hit the cat as the _ was slow.", "option1": "cat", "option2": "door", "answer": "2"}
ITEMS = {"lambada": LAMBADA, "hellaswag": HELLASWAG, "piqa": PIQA, "winogrande": WINOGRANDE}


def written(tmp_path, *lines):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)
