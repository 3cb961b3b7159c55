"""Run what needs a GPU, and neither Ray nor vLLM, and compare it with plain torch.

Usage: python -m tests.gpu [--device cuda|cpu] [--only models,kernels,head,steps]

Wants torch, transformers, peft, pyarrow and pydantic. With `--device cpu` the same rows at small sizes. Prints a table,
and exits with 1 where anything does not hold.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("models", "kernels", "head", "steps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()

    import torch
    import transformers

    from tests.gpu import forward, training
    from tests.gpu.inputs import Sizes
    from tests.gpu.table import HEADER

    parts = {"models": forward.models, "kernels": forward.kernels, "head": forward.head, "steps": training.steps}
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU is at hand: try --device cpu")
        return 1
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}\n{HEADER}", flush=True)
    failed, began = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for part in options.only.split(","):
            for row in parts[part](device, Sizes.of(device), Path(folder)):
                print(row, flush=True)
                failed += not row.holds
    print(f"{failed} do not hold; {time.perf_counter() - began:.0f} s on {name}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
