"""Writes q, k and v, and with --cotangent do, of standard normal numbers to a safetensors file.

Shares no code with annulus, so that a file of another program is what the tests read. Needs nothing but Python 3;
numpy is used where it is installed, as it is ten times as fast.

    python3 make_safetensors.py OUT [--batch 1] [--tokens 64] [--heads 4] [--kv-heads 2] [--head-dim 32]
                                    [--dtype f32|f16|bf16] [--seed 0] [--scale 1.0] [--cotangent] [--no-numpy]

Prints JSON: for each tensor its shape and a few elements by flat index, as they were stored.
"""

import argparse
import array
import json
import random
import struct
import sys

CHUNK = 1 << 16


def to_bf16(single):
    """Bits of the bfloat16 nearest to each element of an array('f'), ties to even; no NaNs among them."""
    words = array.array("I", single.tobytes())
    return array.array("H", [(w + 0x7FFF + (w >> 16 & 1)) >> 16 for w in words])


def little(values):
    """The bytes of an array, little-endian."""
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def pack(numbers, dtype):
    """A list of floats as stored bytes."""
    if dtype == "f16":
        return struct.pack(f"<{len(numbers)}e", *numbers)
    single = array.array("f", numbers)
    return little(single if dtype == "f32" else to_bf16(single))


def unpack(stored, dtype):
    """The float that a stored element stands for."""
    if dtype == "f32":
        return struct.unpack("<f", stored)[0]
    if dtype == "f16":
        return struct.unpack("<e", stored)[0]
    return struct.unpack("<f", b"\0\0" + stored)[0]


def chunks_with_numpy(numpy, count, dtype, seed, scale):
    generator = numpy.random.default_rng(seed)
    for begin in range(0, count, CHUNK):
        numbers = generator.standard_normal(min(CHUNK, count - begin)) * scale
        if dtype == "bf16":
            words = numbers.astype("<f4").view("<u4")
            yield ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype("<u2").tobytes()
        else:
            yield numbers.astype("<f4" if dtype == "f32" else "<f2").tobytes()


def chunks(count, dtype, seed, scale):
    gauss = random.Random(seed).gauss
    for begin in range(0, count, CHUNK):
        yield pack([gauss(0.0, scale) for _ in range(min(CHUNK, count - begin))], dtype)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="f32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--cotangent", action="store_true")
    parser.add_argument("--no-numpy", action="store_true")
    args = parser.parse_args()

    numpy = None
    if not args.no_numpy:
        try:
            import numpy
        except ImportError:
            pass

    width = 4 if args.dtype == "f32" else 2
    heads = {"q": args.heads, "k": args.kv_heads, "v": args.kv_heads}
    if args.cotangent:
        heads["do"] = args.heads
    shapes = {name: [args.batch, args.tokens, n, args.head_dim] for name, n in heads.items()}
    counts = {name: b * s * h * d for name, (b, s, h, d) in shapes.items()}

    header, end = {"__metadata__": {"seed": str(args.seed), "scale": str(args.scale)}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + counts[name] * width
        header[name] = {"dtype": args.dtype.upper(), "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    report = {}
    with open(args.out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, (name, count) in enumerate(counts.items()):
            asked = sorted({i for i in (0, 1, count // 3, count // 2, count - 2, count - 1) if 0 <= i < count})
            elements, at = {}, 0
            source = (args.dtype, len(heads) * args.seed + index, args.scale)
            made = chunks_with_numpy(numpy, count, *source) if numpy else chunks(count, *source)
            for stored in made:
                file.write(stored)
                for i in asked:
                    offset = (i - at) * width
                    if 0 <= offset < len(stored):
                        elements[i] = unpack(stored[offset : offset + width], args.dtype)
                at += len(stored) // width
            report[name] = {"dtype": args.dtype.upper(), "shape": shapes[name], "elements": elements}
    print(json.dumps(report))


main()
