"""`make mini` and `make mini-onevision`: train a mini model from nothing, or go on."""

import argparse
from pathlib import Path

import torch

from models.training.mini import LATE, MINI
from models.training.onevision import ONEVISION
from models.training.training import Training

RECIPES = {"mini": MINI, "mini-late": LATE, "mini-onevision": ONEVISION}

parser = argparse.ArgumentParser(prog="python -m models.training", description=__doc__)
parser.add_argument("recipe", choices=RECIPES)
parser.add_argument("output", type=Path, help="folder of the checkpoint")
parser.add_argument("--work", type=Path, required=True, help="folder of the progress")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
training = Training(RECIPES[arguments.recipe], arguments.work, seed=arguments.seed, device=arguments.device)
training.run()
training.export(arguments.output)
print(f"{arguments.output}, after {training.seconds / 60:.0f} minutes of training")
