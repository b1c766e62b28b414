"""PyTorch on every core, `torch_cpu.py matmul`: attention in one of several forms, by the bench's protocol.

It answers each line of JSON on standard input by a line on standard output, as `../contender.ts` says, and reads and
writes tensors as raw float32, [tokens, heads, headDim].
"""
import json
import math
import os
import sys
import time

try:
    import numpy
    import torch
except ImportError:
    refusal = "PyTorch is missing: `deno task bench:torch` installs Debian's python3-torch, about 1 GB"
    print("@bench " + json.dumps({"refusal": refusal}), flush=True)
    sys.stdin.read()
    sys.exit(0)


def load(folder, name, job):
    values = numpy.fromfile(f"{folder}/{name}.f32", dtype=numpy.float32)
    shaped = values.reshape(job["tokens"], job["heads"], job["headDim"])
    return torch.from_numpy(shaped).transpose(0, 1).contiguous()


def save(folder, name, tensor):
    tensor.detach().transpose(0, 1).contiguous().numpy().tofile(f"{folder}/{name}.f32")


def unseen(job):
    """True where a query does not see a key."""
    if not job["causal"]:
        return None
    return torch.ones(job["tokens"], job["tokens"], dtype=torch.bool).triu(1)


def sdpa(q, k, v, mask, job):
    """The library's own attention, under the name that this version gives it."""
    functional = torch.nn.functional
    if hasattr(functional, "scaled_dot_product_attention"):
        return functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=job["causal"])[0]
    return functional._scaled_dot_product_attention(q, k, v, is_causal=job["causal"])[0]


def matmul(q, k, v, mask, job):
    """The textbook, over all heads at once."""
    scores = q @ k.transpose(1, 2) / math.sqrt(job["headDim"])
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    return torch.softmax(scores, -1) @ v


def heads(q, k, v, mask, job):
    """The textbook head by head, so that the scores of one head stay in the cache."""
    return torch.stack([matmul(q[h:h + 1], k[h:h + 1], v[h:h + 1], mask, job)[0] for h in range(job["heads"])])


def rows(q, k, v, mask, job):
    """Blocks of query rows, each against the keys that it can see: what a person writes who knows of causality."""
    size = 256
    parts = []
    for row in range(0, job["tokens"], size):
        last = min(row + size, job["tokens"])
        keys = last if job["causal"] else job["tokens"]
        seen = None if mask is None else mask[row:last, :keys]
        parts.append(matmul(q[:, row:last], k[:, :keys], v[:, :keys], seen, job))
    return torch.cat(parts, 1)


forms = {"sdpa": sdpa, "matmul": matmul, "heads": heads, "rows": rows}


class Contest:
    def __init__(self, job, folder, attend):
        if job["kind"] == "matmul":
            raise ValueError("it only attends")
        self.job, self.attend = job, attend
        self.gradients = job["kind"] == "gradients"
        self.q, self.k, self.v = (load(folder, name, job).requires_grad_(self.gradients) for name in "qkv")
        self.cotangent = load(folder, "dO", job) if self.gradients else None
        self.mask = unseen(job)

    def about(self):
        return f"PyTorch {torch.__version__}, threads: {torch.get_num_threads()}"

    def sample(self):
        for tensor in (self.q, self.k, self.v):
            tensor.grad = None
        began = time.perf_counter()
        with torch.set_grad_enabled(self.gradients):
            self.o = self.attend(self.q, self.k, self.v, self.mask, self.job)
        forward = time.perf_counter() - began
        if not self.gradients:
            return {"seconds": forward}
        self.o.backward(self.cotangent)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "parts": {"forward": forward, "backward": seconds - forward}}

    def result(self, folder):
        results = {"o": self.o}
        if self.gradients:
            results.update(dq=self.q.grad, dk=self.k.grad, dv=self.v.grad)
        for name, tensor in results.items():
            save(folder, name, tensor)
        return list(results)


def main():
    torch.set_num_threads(os.cpu_count())
    contest = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "open":
                contest = Contest(request["job"], request["inputs"], forms[sys.argv[1]])
                answer = contest.about()
            elif request["op"] == "sample":
                answer = contest.sample()
            else:
                answer = contest.result(request["folder"])
            reply = {"answer": answer}
        except Exception as error:
            reply = {"refusal": str(error)}
        print("@bench " + json.dumps(reply), flush=True)


main()
