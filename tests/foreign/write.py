"""Writes the folders beside this file: small models with random weights, each with what Hugging Face's own code makes of it.

    python3 tests/foreign/write.py tests/foreign

needs torch and transformers (written with torch 2.11.0 and transformers 5.17.0). Every folder is what `save_pretrained`
writes, and in it `expected.json`: for some token ids the logits of the last 24 positions, the 128 ids that greedy decoding adds
to a prompt, and what the tokenizer and the chat template make of a text. Weights are rounded to the stored format first
and then computed with in float64 (but for norms, softmax and rope, for which transformers takes float32).
"""

import json
import pathlib
import sys

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

out = pathlib.Path(sys.argv[1])

TEXT = pathlib.Path(__file__).read_text()
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=287,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT
    return fast


# Sizes that are multiples of nothing, but for what a family asks for.
SHAPE = dict(
    vocab_size=291,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=12,
    max_position_embeddings=4096,
    initializer_range=0.3,
    eos_token_id=None,
    bos_token_id=None,
    pad_token_id=None,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)


def shape(**changes):
    made = {**SHAPE, **changes}
    return {name: value for name, value in made.items() if value != "none"}


FOLDERS = {
    "llama2": (transformers.LlamaConfig, shape(num_key_value_heads=6, head_dim="none"), torch.float16),
    "llama3.1": (transformers.LlamaConfig, shape(rope_parameters=LLAMA3), torch.bfloat16),
    "smollm2": (transformers.LlamaConfig, shape(tie_word_embeddings=True, rms_norm_eps=1e-5), torch.float32),
    "mistral": (transformers.MistralConfig, shape(sliding_window=21), torch.bfloat16),
    "qwen2": (transformers.Qwen2Config, shape(head_dim="none", tie_word_embeddings=True), torch.bfloat16),
    "qwen2-layer-types": (
        transformers.Qwen2Config,
        shape(
            head_dim="none",
            use_sliding_window=True,
            sliding_window=19,
            max_window_layers=1,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
        torch.bfloat16,
    ),
    "qwen3": (transformers.Qwen3Config, shape(), torch.bfloat16),
    "qwen3-layer-types": (
        transformers.Qwen3Config,
        shape(
            use_sliding_window=True,
            sliding_window=17,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        torch.float16,
    ),
}

for seed, (name, (config_class, fields, dtype)) in enumerate(FOLDERS.items()):
    folder = out / name
    torch.manual_seed(seed)
    config = config_class(**fields)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Norms that are all 1 and biases that are all 0 would hide what is done with them.
            if "norm" in parameter_name:
                parameter.copy_(0.75 + 0.5 * torch.rand_like(parameter))
            elif parameter_name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(do_sample=False)
    # Several files for some, as large models have them.
    size = "30KB" if name.startswith("qwen3") else "5GB"
    model.to(dtype).save_pretrained(folder, max_shard_size=size)
    spoken = tokenizer()
    spoken.save_pretrained(folder)

    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = torch.randint(0, fields["vocab_size"], (1, 61))
    with torch.no_grad():
        logits = exact(ids).logits[0]
        prompt = ids[:, :37]
        grown = prompt
        # By hand, without a cache: nothing but argmax of the last position.
        margins = []
        for _ in range(128):
            last = exact(grown, use_cache=False).logits[0, -1]
            two = last.topk(2).values
            margins.append((two[0] - two[1]).item())
            grown = torch.cat([grown, last.argmax().view(1, 1)], dim=1)
    says = "What does  “naïve” mean,\n in 2 words? 🙂"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": says},
    ]
    expected = {
        "written_by": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "ids": ids[0].tolist(),
        "logits": [[float(f"{x:.8g}") for x in row] for row in logits[-24:].tolist()],
        "prompt": prompt[0].tolist(),
        "greedy": grown[0, prompt.shape[1]:].tolist(),
        "smallest_margin": min(margins),
        "text": says,
        "text_ids": spoken(says)["input_ids"],
        "messages": messages,
        "chat": spoken.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, logits.std().item(), min(margins), len(set(expected["greedy"])))
