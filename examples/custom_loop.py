"""A training loop of one's own.

python examples/custom_loop.py --model HuggingFaceTB/SmolLM2-135M
"""

from __future__ import annotations

import argparse
import random

import reviews
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zo2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="a hub id or a folder")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--lr", type=float, default=1e-4)
parser.add_argument("--output", default="runs/custom_loop")
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model)
zo2.prepare(model, zo2.ZOConfig("mezo-sgd", lr=args.lr, eps=1e-3, weight_decay=0.0, seed=0))
scheduler = torch.optim.lr_scheduler.LinearLR(model.opt, 1.0, 0.0, total_iters=args.steps)

examples = [reviews.encode(tokenizer, *one) for one in reviews.load("reviews.tsv")]
random.seed(0)
for step in range(args.steps):
    batch = reviews.collate(random.sample(examples, args.batch_size))
    loss = model(**batch)  # one step; model.zo_step([batch, ...]) takes several micro-batches
    if step % 10 == 0 or step == args.steps - 1:
        print(f"step {step}: loss {loss:.4f}, lr {model.opt.lr:.2g}")
    scheduler.step()

model.zo_eval()  # from here on, calls are plain forwards
test = [reviews.encode(tokenizer, *one) for one in reviews.load("reviews-test.tsv")]
batches = [reviews.collate(test[i : i + 16]) for i in range(0, len(test), 16)]
words = reviews.first_tokens(tokenizer)
outputs = model.zo_forward(batches)  # all of them in one sweep of the weights
pairs = zip(outputs, batches, strict=True)
hits = torch.cat([reviews.right(out.logits.cpu(), b["labels"], words) for out, b in pairs])
print(f"right on {hits.float().mean():.0%} of {len(hits)} unseen reviews")

model.save_pretrained(args.output)
tokenizer.save_pretrained(args.output)
print(f"saved in {args.output}")
