"""One thread a worker, so that two workers do not share two cores four ways."""

import torch

torch.set_num_threads(1)
