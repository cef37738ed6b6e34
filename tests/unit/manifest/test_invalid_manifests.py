"""Invalid manifests, each with the exact messages that the user gets."""
# ruff: noqa: E501 (each message is on one line, as the user reads it)

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.catalog.schemes import scheme_names
from hpcq.core.errors import ManifestError, SetupError
from hpcq.manifest import load
from hpcq.manifest.pins import Pin, Pins, repositories
from hpcq.manifest.schema import Manifest

RUN = '[run]\nname = "x"\n'
MODEL = '[[models]]\nid = "meta-llama/Llama-3.1-8B-Instruct"\n'
SMOL = '[[models]]\nid = "HuggingFaceTB/SmolLM2-135M"\n'
SCHEMES = '[schemes]\nuse = ["bf16"]\n'
MINE = '[schemes]\nuse = ["mine"]\n[[schemes.define]]\nname = "mine"\n'
TASKS = '[tasks]\nuse = ["arc_challenge"]\n'
BROKEN_PROFILE = """\
name = "b"
scheduler = "pbs"
[gpu_classes.a]
gpu = "H100"
cpus_per_node = 1
memory_gib = 1
"""
PROFILE_OF_ENVIRONMENTS = """\
name = "e"
scheduler = "slurm"
[gpu_classes.cpu]
cpus_per_node = 1
memory_gib = 1
[environments.core]
[environments.own]
[environments.transformer]
"""
LISTED_SCHEMES = [name for name in scheme_names() if ":" not in name and not name.startswith("study-")]
KNOWN_SCHEMES = f"known are {', '.join(LISTED_SCHEMES[:20])}, …"  # there are more than a message lists
UNKNOWN_TASK = (
    "unknown task 'arc_chalenge': it is not in hpcq's catalog, and lm-eval's other tasks are not known here, because the "
    "environment 'transformers' does not exist: run `hpcq stage MANIFEST`, or `make environments`. Did you mean "
    "'arc_challenge'?"
)


def full(run: str = RUN, models: str = MODEL, schemes: str = SCHEMES, tasks: str = TASKS, more: str = "") -> str:
    """Return a manifest of these parts; the defaults are valid."""
    return run + models + schemes + tasks + more


NO_REVISIONS = "is not allowed with data.mirror, whose folders have no revisions. Remove the revision, or the mirror."
COMMIT_INSTEAD = (
    "is not read: what comes from the hub is identified by its commit, and what comes from a mirror by its files. Set "
    "{} to a commit, or remove this line."
)
DIGEST = "a" * 64


# The text, and each problem without its prefix "mine.toml"; FOLDER is replaced by the working directory.
CASES: dict[str, tuple[str, list[str]]] = {
    "empty": (
        "",
        [
            ": run: is missing. Add a table [run] with the name of the run.",
            ": models: is missing. Add a table [[models]] for each base checkpoint.",
            ": tasks: has no tasks; add suites or use, such as use = ['arc_challenge'].",
        ],
    ),
    "no run": (
        MODEL + SCHEMES + TASKS,
        [": run: is missing. Add a table [run] with the name of the run."],
    ),
    "no models": (
        RUN + SCHEMES + TASKS,
        [": models: is missing. Add a table [[models]] for each base checkpoint."],
    ),
    "empty models": (
        "models = []\n" + RUN + SCHEMES + TASKS,
        [":1: models: is empty; name at least one model."],
    ),
    "model table": (
        full(models='[models]\nid = "a/b"\n'),
        [":3: models: must be a list of tables, not one table; write [[models]]."],
    ),
    "no schemes": (
        RUN + MODEL + TASKS,
        [": schemes.use: meta-llama/Llama-3.1-8B-Instruct has no scheme; list at least one, such as 'bf16'."],
    ),
    "no tasks": (
        RUN + MODEL + SCHEMES,
        [": tasks: has no tasks; add suites or use, such as use = ['arc_challenge']."],
    ),
    "unknown table": (
        full(more="[clutser]\nprofile = 'local'\n"),
        [
            ":9: clutser: unknown key; allowed here are calibration, cluster, data, evaluate, fidelity, generation, locked, models, paths, plan, prompt, quantize, report, retries, run, schemes, tasks. Did you mean 'cluster'?"
        ],
    ),
    "unknown key": (
        full(more="[evaluate]\nbatchsize = 4\n"),
        [
            ":10: evaluate.batchsize: unknown key; allowed here are add_eos, backend, batch_size, device, dtype, engine, environment, fallback, flush_interval_s, max_length, offload, prefix_sharing, seed, shards, synthetic. Did you mean 'batch_size'?"
        ],
    ),
    "unknown model key": (
        full(models=MODEL + 'revison = "main"\n'),
        [
            (
                ":5: models.0.revison: unknown key; allowed here are checkpoint_digests, checkpoints, digest, id, path,"
                " revision, schemes, source, trust_remote_code. Did you mean 'revision'?"
            )
        ],
    ),
    "unknown key far": (
        full(more="[evaluate]\nxyzzy = 4\n"),
        [
            ":10: evaluate.xyzzy: unknown key; allowed here are add_eos, backend, batch_size, device, dtype, engine, environment, fallback, flush_interval_s, max_length, offload, prefix_sharing, seed, shards, synthetic."
        ],
    ),
    "name slash": (
        full(run='[run]\nname = "a/b"\n'),
        [
            ":2: run.name: 'a/b' is not a valid run name: use 1 to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit."
        ],
    ),
    "name dots": (
        full(run='[run]\nname = ".."\n'),
        [
            ":2: run.name: '..' is not a valid run name: use 1 to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit."
        ],
    ),
    "name empty": (
        full(run='[run]\nname = " "\n'),
        [":2: run.name: must not be empty."],
    ),
    "name number": (
        full(run="[run]\nname = 7\n"),
        [":2: run.name: must be a string, not 7."],
    ),
    "model unknown": (
        full(models='[[models]]\nid = "meta-llama/Llama-3.1-8B-Instuct"\n'),
        [":4: models.0.id: no hub. Did you mean 'meta-llama/Llama-3.1-8B-Instruct'?"],
    ),
    "model unknown far": (
        full(models='[[models]]\nid = "someone/their-own"\n'),
        [":4: models.0.id: no hub."],
    ),
    "model not packaged": (
        full(models='[[models]]\nid = "someone/their-own"\nsource = "packages"\n'),
        [
            ":4: models.0.id: no package contains the model 'someone/their-own'; remove source, or give the folder of its checkpoint."
        ],
    ),
    "revision of a package": (
        full(models=MODEL + 'source = "packages"\nrevision = "main"\n'),
        [":6: models.0.revision: is not allowed with source = 'packages': a package has no revisions."],
    ),
    "revision of a mirror": (
        full(models=MODEL + 'revision = "v1"\ncheckpoints = ["org/awq@v2"]\n', more='[data]\nmirror = "folder"\n'),
        [
            f":5: models.0.revision: 'v1' {NO_REVISIONS}",
            ":6: models.0.checkpoints: 'org/awq@v2' is not in data.mirror: there is no folder FOLDER/folder/models/org/awq.",
            f":6: models.0.checkpoints: 'org/awq@v2' {NO_REVISIONS}",
        ],
    ),
    "revision of mirrored data": (
        full(more='[data]\nmirror = "folder"\n[data.revisions]\n"allenai/ai2_arc" = "v1"\n'),
        [f":12: data.revisions.allenai/ai2_arc: 'v1' {NO_REVISIONS}"],
    ),
    "revision of data that is not read": (
        full(more='[data.revisions]\n"allenai/AI2_arc" = "v1"\n'),
        [
            ":10: data.revisions.allenai/AI2_arc: 'allenai/AI2_arc' is not a data set of this run's tasks, which reads allenai/ai2_arc. Correct or remove this line."
        ],
    ),
    "digest of a model on the hub": (
        full(models=MODEL + f'digest = "{DIGEST}"\n'),
        [f":5: models.0.digest: {COMMIT_INSTEAD.format('revision')}"],
    ),
    "digest of a checkpoint on the hub": (
        full(models=MODEL + f'checkpoints = ["org/awq"]\ncheckpoint_digests = {{"org/awq" = "{DIGEST}"}}\n'),
        [
            ":6: models.0.checkpoint_digests.org/awq: is not read: a checkpoint on the hub is identified by its commit. Write 'org/name@commit'."
        ],
    ),
    "digest of items on the hub": (
        full(more=f'[tasks.options.arc_challenge]\ndigest = "{DIGEST}"\n'),
        [f":10: tasks.options.arc_challenge.digest: {COMMIT_INSTEAD.format('data.revisions')}"],
    ),
    "digest of a calibration text on the hub": (
        full(more=f'[calibration]\ndataset = "org/passages"\ndigest = "{DIGEST}"\n'),
        [f":11: calibration.digest: {COMMIT_INSTEAD.format('calibration.revision')}"],
    ),
    "column of a packaged text": (
        full(more='[calibration]\ncolumn = "content"\nrevision = "v1"\n'),
        [
            ":10: calibration.column: is only allowed with a data set on the hub or a .jsonl file, not 'boolq-passages'.",
            ":11: calibration.revision: is only allowed with a data set on the hub, not 'boolq-passages'.",
        ],
    ),
    "mirror without the model": (
        full(models='[[models]]\nid = "someone/their-own"\n', more='[data]\nmirror = "folder"\n'),
        [
            ":4: models.0.id: the mirror has no 'someone/their-own': FOLDER/folder/models/someone/their-own is not a checkpoint (its config.json is missing or not valid JSON)."
        ],
    ),
    "mirror without the checkpoint": (
        full(models=MODEL + 'checkpoints = ["org/awq"]\n', more='[data]\nmirror = "folder"\n'),
        [
            ":5: models.0.checkpoints: 'org/awq' is not in data.mirror: there is no folder FOLDER/folder/models/org/awq.",
        ],
    ),
    "model neither": (
        full(models='[[models]]\nschemes = ["bf16"]\n'),
        [":3: models.0.id: is missing. Give the model's id on the hub, or the path of its checkpoint."],
    ),
    "model twice": (
        full(models=MODEL + MODEL),
        [":6: models.1.id: 'meta-llama/Llama-3.1-8B-Instruct' is listed twice."],
    ),
    "model revision path": (
        full(models='[[models]]\npath = "elsewhere"\nrevision = "main"\n'),
        [":5: models.0.revision: is not allowed with path: a local checkpoint has no revisions."],
    ),
    "model no checkpoint": (
        full(models='[[models]]\nid = "own"\npath = "folder"\n'),
        [
            ":5: models.0.path: 'folder' is not a checkpoint: FOLDER/folder/config.json is missing. Copy or download it, or correct the path."
        ],
    ),
    "model file": (
        full(models='[[models]]\nid = "own"\npath = "text.md"\n'),
        [":5: models.0.path: 'text.md' is a file; give the checkpoint's folder."],
    ),
    "trust": (
        full(models=MODEL + 'trust_remote_code = "yes"\n'),
        [":5: models.0.trust_remote_code: must be true or false, not 'yes'."],
    ),
    "model digest": (
        full(models=MODEL + 'digest = "abc"\n'),
        [":5: models.0.digest: must be a SHA-256, 64 hexadecimal digits, not 'abc'."],
    ),
    "model scheme unknown": (
        full(models=MODEL + 'schemes = ["bf16", "fp9"]\n'),
        [f":5: models.0.schemes: unknown scheme 'fp9'; {KNOWN_SCHEMES}. Did you mean 'fp8'?"],
    ),
    "model schemes empty": (
        full(models=MODEL + "schemes = []\n"),
        [":5: models.0.schemes: meta-llama/Llama-3.1-8B-Instruct has no scheme; list at least one, such as 'bf16'."],
    ),
    "scheme unknown": (
        full(schemes='[schemes]\nuse = [\n  "bf16", # the base\n  "gptq-w4a61",\n]\n'),
        [f":8: schemes.use: unknown scheme 'gptq-w4a61'; {KNOWN_SCHEMES}. Did you mean 'gptq-w4a16'?"],
    ),
    "scheme unknown and another not divisible": (
        full(models=SMOL, schemes='[schemes]\nuse = ["fp9", "gptq-w4a16-g128"]\n'),
        [
            f":6: schemes.use: unknown scheme 'fp9'; {KNOWN_SCHEMES}. Did you mean 'fp8'?",
            ":6: schemes.use: 'gptq-w4a16-g128' cannot quantize SmolLM2-135M: 576 is not a multiple of 128. Try 'gptq-w4a16-g64'.",
        ],
    ),
    "scheme unknown and another twice": (
        full(schemes='[schemes]\nuse = ["fp9", "bf16", "bf16"]\n'),
        [
            f":6: schemes.use: unknown scheme 'fp9'; {KNOWN_SCHEMES}. Did you mean 'fp8'?",
            ":6: schemes.use: 'bf16' is listed twice.",
        ],
    ),
    "scheme twice": (
        full(schemes='[schemes]\nuse = ["bf16", "fp8", "bf16"]\n'),
        [":6: schemes.use: 'bf16' is listed twice."],
    ),
    "scheme same": (
        full(schemes='[schemes]\nuse = ["gptq-w4a16", "gptq-w4a16-g128"]\n'),
        [":6: schemes.use: 'gptq-w4a16-g128' is the same as 'gptq-w4a16'; list only one of them."],
    ),
    "scheme no groups": (
        full(schemes='[schemes]\nuse = ["fp8-dynamic-g64"]\n'),
        [":6: schemes.use: 'fp8-dynamic-g64' does not exist: 'fp8-dynamic' has no groups. Use 'fp8-dynamic'."],
    ),
    "scheme text": (
        full(schemes='[schemes]\nuse = "bf16"\n'),
        [":6: schemes.use: must be a list, not 'bf16'."],
    ),
    "scheme number": (
        full(schemes='[schemes]\nuse = ["bf16", 8]\n'),
        [":6: schemes.use: must be a string, not 8."],
    ),
    "group divides": (
        full(models=SMOL, schemes='[schemes]\nuse = ["gptq-w4a16-g128"]\n'),
        [
            ":6: schemes.use: 'gptq-w4a16-g128' cannot quantize SmolLM2-135M: 576 is not a multiple of 128. Try 'gptq-w4a16-g64'."
        ],
    ),
    "group divides awq": (
        full(models=SMOL + 'schemes = ["awq-w4a16"]\n'),
        [
            ":5: models.0.schemes: 'awq-w4a16' cannot quantize SmolLM2-135M: 576 is not a multiple of 128. Try 'awq-w4a16-g64'."
        ],
    ),
    "group own": (
        full(schemes=MINE + 'base = "gptq-w4a16"\ngroup_size = 96\n'),
        [
            ":6: schemes.use: 'mine' cannot quantize Llama-3.1-8B-Instruct: 4096 is not a multiple of 96. Try 'mine-g128'."
        ],
    ),
    "family without a quantized format": (
        full(models='[[models]]\nid = "openai/gpt-oss-20b"\n', schemes='[schemes]\nuse = ["bf16", "fp8-dynamic"]\n'),
        [
            ":6: schemes.use: 'fp8-dynamic' cannot quantize gpt-oss-20b: checkpoints of 'gpt_oss' have all experts of a layer in one tensor, for which there is no quantized format: evaluate it unquantized, or name a checkpoint that its publisher has quantized."
        ],
    ),
    "group none fits": (
        full(schemes='[schemes]\nuse = ["gptq-w4a16-g7"]\n'),
        [
            ":6: schemes.use: 'gptq-w4a16-g7' cannot quantize Llama-3.1-8B-Instruct: 4096 is not a multiple of 7. Try 'gptq-w4a16-g128'."
        ],
    ),
    "group zero": (
        full(schemes='[schemes]\nuse = ["gptq-w4a16-g0"]\n'),
        [":6: schemes.use: 'gptq-w4a16-g0' does not exist: the group size must be 1 or more."],
    ),
    "ignore is no expression": (
        full(schemes=MINE + 'base = "fp8"\nignore = ["lm_head", "re:*.mlp"]\n'),
        [
            ":10: schemes.define.0.ignore: 're:*.mlp' is not a regular expression: nothing to repeat at position 0. Write '.*' for any characters."
        ],
    ),
    "ignore is a text": (
        full(schemes=MINE + 'base = "fp8"\nignore = "lm_head"\n'),
        [":10: schemes.define.0.ignore: must be a list, not 'lm_head'."],
    ),
    "ignore has a number": (
        full(schemes=MINE + 'base = "fp8"\nignore = ["lm_head", 3]\n'),
        [":10: schemes.define.0.ignore: must be a string, not 3."],
    ),
    "ignore matches nothing": (
        full(schemes=MINE + 'base = "fp8"\nignore = ["lm_head", "mlp.gate"]\n'),
        [
            ":10: schemes.define.0.ignore: for meta-llama/Llama-3.1-8B-Instruct, 'mlp.gate' matches no linear layer; the layers are model.layers.*.self_attn.q_proj, model.layers.*.self_attn.k_proj, model.layers.*.self_attn.v_proj, model.layers.*.self_attn.o_proj, model.layers.*.mlp.gate_proj, model.layers.*.mlp.up_proj, model.layers.*.mlp.down_proj, lm_head. Did you mean 're:.*mlp\\.gate.*'?"
        ],
    ),
    "ignore matches everything": (
        full(schemes=MINE.replace('"mine"]', '"mine-g64"]') + 'base = "gptq-w4a16"\nignore = ["re:.*"]\n'),
        [
            ":10: schemes.define.0.ignore: for meta-llama/Llama-3.1-8B-Instruct, it matches every linear layer, so nothing would be quantized. Use scheme 'bf16', or remove an entry."
        ],
    ),
    "ignore replaces the head": (
        full(schemes=MINE + 'base = "fp8"\nignore = ["re:.*o_proj"]\n'),
        [
            ":10: schemes.define.0.ignore: for meta-llama/Llama-3.1-8B-Instruct, the list replaces the default ['lm_head'], so the head would be quantized. Add 'lm_head' to the list; an empty list quantizes every layer."
        ],
    ),
    "define base": (
        full(schemes=MINE + 'base = "gptq"\n'),
        [f":9: schemes.define.0.base: unknown scheme 'gptq'; {KNOWN_SCHEMES}. Did you mean 'gptq-w4a16'?"],
    ),
    "define incomplete": (
        full(schemes=MINE + 'method = "gptq"\n'),
        [":7: schemes.define: 'mine' is incomplete: give a base, or tool, method, weights and activations."],
    ),
    "group size of a fixed format": (
        full(schemes=MINE + 'base = "nvfp4"\ngroup_size = 64\n'),
        [":10: schemes.define.0.group_size: must be 16 with granularity 'group', which nvfp4 requires."],
    ),
    "group size in a name of a fixed format": (
        full(schemes='[schemes]\nuse = ["nvfp4-g64", "fp8-block-g64"]\n'),
        [
            ":6: schemes.use: 'nvfp4-g64' does not exist: the group size of 'nvfp4' is fixed. Use 'nvfp4'.",
            ":6: schemes.use: 'fp8-block-g64' does not exist: the group size of 'fp8-block' is fixed. Use 'fp8-block'.",
        ],
    ),
    "blocks that do not divide a layer": (
        full(models=SMOL, schemes='[schemes]\nuse = ["fp8-block"]\n'),
        [
            ":6: schemes.use: 'fp8-block' cannot quantize SmolLM2-135M: 576 is not a multiple of 128. The format has no other size: choose a scheme with scales per channel, such as 'fp8-dynamic'."
        ],
    ),
    "quantized KV cache of an unquantized model": (
        full(schemes=MINE + 'base = "bf16"\nkv_cache = "fp8_e4m3"\n'),
        [
            ":10: schemes.define.0.kv_cache: is not allowed with tool 'none': start from a quantized scheme, such as 'fp8-dynamic'."
        ],
    ),
    "unknown format of a KV cache": (
        full(schemes=MINE + 'base = "gptq-w4a16"\nkv_cache = "int8"\n'),
        [":10: schemes.define.0.kv_cache: must be one of fp8_e4m3, not 'int8'."],
    ),
    "mappings of a method without any": (
        full(schemes=MINE + 'base = "gptq-w4a16"\nmappings = [{ smooth = "re:.*norm", balance = ["re:.*q_proj"] }]\n'),
        [":10: schemes.define.0.mappings: is not allowed with method 'gptq', only with smoothquant and awq."],
    ),
    "mappings that match nothing": (
        full(schemes=MINE + 'base = "awq-w4a16"\nmappings = [{ smooth = "re:*norm", balance = ["re:.*qkv"] }]\n'),
        [
            ":10: schemes.define.0.mappings.0.smooth: 're:*norm' is not a regular expression: nothing to repeat at position 0. Write '.*' for any characters.",
            ":10: schemes.define.0.mappings.0.balance: 're:.*qkv' matches no linear layer of meta-llama/Llama-3.1-8B-Instruct, such as 'model.layers.0.self_attn.q_proj'.",
        ],
    ),
    "define twice": (
        full(schemes=MINE + 'base = "fp8"\n[[schemes.define]]\nname = "mine"\nbase = "bf16"\n'),
        [":11: schemes.define.1.name: 'mine' is defined twice."],
    ),
    "define smoothing": (
        full(schemes=MINE + 'base = "gptq-w4a16"\nsmoothing_strength = 0.5\n'),
        [":10: schemes.define.0.smoothing_strength: is not allowed with method 'gptq', only with smoothquant."],
    ),
    "define strength": (
        full(schemes=MINE + 'base = "smoothquant-w8a8"\nsmoothing_strength = 1.5\n'),
        [":10: schemes.define.0.smoothing_strength: must be 1 or less, not 1.5."],
    ),
    "define damping": (
        full(schemes=MINE + 'base = "fp8"\ndamping = 0.1\n'),
        [":10: schemes.define.0.damping: is not allowed with method 'rtn', only with gptq and smoothquant."],
    ),
    "define groups": (
        full(schemes=MINE + 'base = "gptq-w8a16"\ngranularity = "group"\n'),
        [":10: schemes.define.0.granularity: 'group' requires a group_size, such as 128."],
    ),
    "define channel": (
        full(schemes=MINE + 'base = "gptq-w8a16"\ngranularity = "channel"\ngroup_size = 64\n'),
        [":11: schemes.define.0.group_size: is not allowed with granularity 'channel'."],
    ),
    "define tool": (
        full(schemes=MINE + 'base = "gptq-w4a16"\ntool = "none"\n'),
        [":7: schemes.define.0.method: 'gptq' cannot be combined with tool 'none'."],
    ),
    "define negative": (
        full(schemes=MINE + 'base = "gptq-w4a16"\ngroup_size = -64\n'),
        [":10: schemes.define.0.group_size: must be 1 or more, not -64."],
    ),
    "define format": (
        full(schemes=MINE + 'base = "gptq-w4a16"\nweights = "int3"\n'),
        [":10: schemes.define.0.weights: llmcompressor does not write 'int3': choose a scheme of another tool."],
    ),
    "synthetic": (
        full(schemes='[schemes]\nuse = ["synthetic-w4a16"]\n'),
        [":6: schemes.use: 'synthetic-w4a16' is for rehearsals: 'accelerate' cannot load it. Use backend 'synthetic'."],
    ),
    "task unknown": (
        full(tasks='[tasks]\nuse = ["arc_chalenge"]\n'),
        [f":8: tasks.use: {UNKNOWN_TASK}"],
    ),
    "suite unknown": (
        full(tasks='[tasks]\nsuites = ["openllm"]\n'),
        [
            ":8: tasks.suites: unknown suite 'openllm'; known are openllm-v1, openllm-v2, mt-bench, study, qwen, reasoning, long-context. Did you mean 'openllm-v2'?"
        ],
    ),
    "task twice": (
        full(tasks='[tasks]\nuse = ["gsm8k", "gsm8k"]\n'),
        [":8: tasks.use: 'gsm8k' is listed twice."],
    ),
    "task in suite": (
        full(tasks='[tasks]\nsuites = ["openllm-v1"]\nuse = ["gsm8k"]\n'),
        [":9: tasks.use: 'gsm8k' is listed twice, here and in a suite or a tag."],
    ),
    "limit zero": (
        full(tasks=TASKS + "limit = 0\n"),
        [":9: tasks.limit: must be 1 or more, not 0."],
    ),
    "limit negative": (
        full(tasks=TASKS + "limit = -5\n"),
        [":9: tasks.limit: must be 1 or more, not -5."],
    ),
    "limit too large": (
        full(tasks=TASKS + "limit = 1_000_000_001\n"),
        [":9: tasks.limit: must be 1000000000 or less, not 1000000001."],
    ),
    "limit of many digits": (
        full(tasks=TASKS + f"limit = 0x{'f' * 5000}\n"),
        [":9: tasks.limit: must be 1000000000 or less, not a number of more than 60 digits."],
    ),
    "limit float": (
        full(tasks=TASKS + "limit = 2.5\n"),
        [":9: tasks.limit: must be an integer, not 2.5."],
    ),
    "limit text": (
        full(tasks=TASKS + 'limit = "all"\n'),
        [":9: tasks.limit: must be an integer, not 'all'."],
    ),
    "option unknown task": (
        full(more="[tasks.options.arc_chalenge]\nlimit = 3\n"),
        [
            ":9: tasks.options.arc_chalenge: 'arc_chalenge' is not a task of this run; its tasks are arc_challenge. Did you mean 'arc_challenge'?"
        ],
    ),
    "option other task": (
        full(more="[tasks.options.gsm8k]\nlimit = 3\n"),
        [":9: tasks.options.gsm8k: 'gsm8k' is not a task of this run; its tasks are arc_challenge."],
    ),
    "option shots": (
        full(more="[tasks.options.arc_challenge]\nnum_fewshot = -1\n"),
        [":10: tasks.options.arc_challenge.num_fewshot: must be 0 or more, not -1."],
    ),
    "option key": (
        full(more="[tasks.options.arc_challenge]\nshots = 1\n"),
        [
            ":10: tasks.options.arc_challenge.shots: unknown key; allowed here are digest, gen_kwargs, items, limit, max_gen_toks, num_fewshot, prompt, repeats, sample."
        ],
    ),
    "data unknown": (
        full(tasks=TASKS + 'data = "package"\n'),
        [":9: tasks.data: 'package' is neither 'hub' nor 'packages' nor a folder. Did you mean 'packages'?"],
    ),
    "data missing": (
        full(tasks='[tasks]\nuse = ["arc_challenge"]\ndata = "folder"\n'),
        [
            ":8: tasks.use: 'folder' has no items of 'arc_challenge': FOLDER/folder/arc_challenge/<split>.jsonl is missing."
        ],
    ),
    "data group": (
        full(tasks='[tasks]\nuse = ["mmlu"]\ndata = "folder"\n'),
        [
            ":8: tasks.use: the members of 'mmlu', whose items it reads from folders, are not known here, because the environment 'transformers' does not exist: run `hpcq stage MANIFEST`, or `make environments`."
        ],
    ),
    "data packages": (
        full(tasks='[tasks]\nuse = ["mmlu"]\ndata = "packages"\n'),
        [
            ":8: tasks.use: no package contains items of 'mmlu'; available are arc_challenge, hellaswag, winogrande, truthfulqa_mc1, gsm8k, ifeval, leaderboard_ifeval. Use data = 'hub' or a folder."
        ],
    ),
    "profile unknown": (
        full(more='[cluster]\nprofile = "clusters/papers.toml"\n'),
        [
            ":10: cluster.profile: unknown profile 'clusters/papers.toml'; known are local, auto, clusters/h100.toml, clusters/h200.toml, clusters/paper.toml, clusters/template.toml, clusters/virtual.toml. Did you mean 'clusters/paper.toml'? To write a profile of this cluster, run `hpcq init --from-sinfo clusters/papers.toml`."
        ],
    ),
    "profile wrong": (
        full(more='[cluster]\nprofile = "broken.toml"\n'),
        [
            ":10: cluster.profile: broken.toml:2: scheduler: must be one of local, slurm, not 'pbs'.",
            ":10: cluster.profile: broken.toml:4: gpu_classes.a.gpu: unknown GPU 'H100'; known are B200-180, H200-141, H100-80, A100-80, A100-40, RTX6000Ada-48, A6000-48, L40S-48, RTX4090-24, L4-24, A10-24, V100-32, V100-16. Did you mean 'H100-80'?",
        ],
    ),
    "profile type": (
        full(more="[cluster]\nprofile = 3\n"),
        [":10: cluster.profile: must be a string, not 3."],
    ),
    "backend": (
        full(more='[evaluate]\nbackend = "vlm"\n'),
        [":10: evaluate.backend: must be one of accelerate, vllm, synthetic, not 'vlm'. Did you mean 'vllm'?"],
    ),
    "dtype": (
        full(more='[evaluate]\ndtype = "fp16"\n'),
        [":10: evaluate.dtype: must be one of auto, float32, bfloat16, float16, not 'fp16'."],
    ),
    "offload unknown": (
        full(more='[evaluate]\noffload = "ram"\n'),
        [":10: evaluate.offload: must be one of none, cpu, disk, not 'ram'."],
    ),
    "offload without accelerate": (
        full(more='[evaluate]\nbackend = "vllm"\nfallback = false\noffload = "cpu"\n'),
        [":12: evaluate.offload: is not allowed with backend 'vllm' and fallback = false: only 'accelerate' offloads."],
    ),
    "offload from cpu to cpu": (
        full(more='[evaluate]\ndevice = "cpu"\noffload = "cpu"\n'),
        [":11: evaluate.offload: must be 'disk' or 'none' with device 'cpu': the weights are in host memory already."],
    ),
    "too many shards": (
        full(more="[evaluate]\nshards = 10001\n"),
        [":10: evaluate.shards: must be 10000 or less, not 10001."],
    ),
    "shards": (
        full(more="[evaluate]\nshards = 0\n"),
        [":10: evaluate.shards: must be 1 or more, not 0."],
    ),
    "flush": (
        full(more="[evaluate]\nflush_interval_s = 0\n"),
        [":10: evaluate.flush_interval_s: must be above 0, not 0."],
    ),
    "flush nan": (
        full(more="[evaluate]\nflush_interval_s = inf\n"),
        [":10: evaluate.flush_interval_s: must be a finite number, not inf."],
    ),
    "seed": (
        full(more="[evaluate]\nseed = -1\n"),
        [":10: evaluate.seed: must be 0 or more, not -1."],
    ),
    "device": (
        full(more='[quantize]\ndevice = "gpu"\n'),
        [":10: quantize.device: must be one of auto, cpu, cuda, not 'gpu'. Did you mean 'cpu'?"],
    ),
    "environment": (
        full(more='[evaluate]\nenvironment = "transformer"\n'),
        [
            ":10: evaluate.environment: unknown environment 'transformer'; known are core, gptqmodel, legacy, transformers, vllm, vllm-cpu. Did you mean 'transformers'?"
        ],
    ),
    "profile environment": (
        full(more='[cluster]\nprofile = "environments.toml"\n[quantize]\nenvironment = "own"\n'),
        [
            ":10: cluster.profile.environments.transformer: unknown environment 'transformer'; known are core, gptqmodel, legacy, transformers, vllm, vllm-cpu. Did you mean 'transformers'? Your own environment must be used by evaluate.environment or quantize.environment."
        ],
    ),
    "backend of many digits": (
        full(more=f"[evaluate]\nbackend = 0x{'f' * 5000}\n"),
        [":10: evaluate.backend: must be one of accelerate, vllm, synthetic, not a number of more than 60 digits."],
    ),
    "synthetic settings": (
        full(more="[evaluate.synthetic]\nrequest_seconds = 0.1\n"),
        [":9: evaluate.synthetic: is not allowed with backend 'accelerate', only with 'synthetic'."],
    ),
    "engine": (
        full(more="[evaluate.engine]\nmax_num_seqs = 8\n"),
        [":9: evaluate.engine: is not allowed with backend 'accelerate', only with 'vllm'."],
    ),
    "engine bounds": (
        full(more='[evaluate]\nbackend = "vllm"\n[evaluate.engine]\nblock_size = 24\ngpu_memory_utilization = 1.5\n'),
        [
            ":12: evaluate.engine.block_size: must be one of 16, 32, 64, 128, 256, not 24.",
            ":13: evaluate.engine.gpu_memory_utilization: must be 1 or less, not 1.5.",
        ],
    ),
    "engine contradiction": (
        full(more='[evaluate]\nbackend = "vllm"\nengine = { max_num_seqs = 9, max_num_batched_tokens = 8 }\n'),
        [":11: evaluate.engine.max_num_batched_tokens: must be max_num_seqs (9) or more, not 8."],
    ),
    "synthetic settings negative": (
        full(more='[evaluate]\nbackend = "synthetic"\nsynthetic = { request_seconds = -0.1 }\n'),
        [":11: evaluate.synthetic.request_seconds: must be 0 or more, not -0.1."],
    ),
    "calibration": (
        full(more='[calibration]\ndataset = "boolq"\n'),
        [
            ":10: calibration.dataset: unknown calibration text 'boolq'; known are boolq-passages, wikitext2, pile-val, pile-10k, ultrachat, llm-compression-calibration, random-tokens. Did you mean 'boolq-passages'? It may also be the path of a .jsonl or .txt file."
        ],
    ),
    "fidelity text": (
        full(more='[fidelity]\ndataset = "boolq"\n'),
        [
            ":10: fidelity.dataset: unknown text 'boolq'; known are boolq-passages. Did you mean 'boolq-passages'? It may also be the path of a .jsonl or .txt file."
        ],
    ),
    "fidelity keys": (
        full(more='[fidelity]\nsplit = "train"\nwindow = 1\ntokens = 0\n'),
        [
            ":11: fidelity.window: must be 2 or more, not 1.",
            ":12: fidelity.tokens: must be 1 or more, not 0.",
        ],
    ),
    "fidelity split without a data set": (
        full(more='[fidelity]\nsplit = "train"\n'),
        [":10: fidelity.split: is only allowed with a data set on the hub, not 'boolq-passages'."],
    ),
    "fidelity window longer than the model's context": (
        full(models='[[models]]\nid = "google/gemma-2b"\n', more="[fidelity]\nwindow = 8192\n"),
        [
            ":10: fidelity.window: 8192 tokens and the one after them exceed the 8192 of google/gemma-2b. Use 8191 or less."
        ],
    ),
    "fidelity window longer than max_length": (
        full(more="[fidelity]\nwindow = 512\n[evaluate]\nmax_length = 512\n"),
        [
            ":10: fidelity.window: 512 tokens and the one after them exceed the 512 of evaluate.max_length. Use 511 or less."
        ],
    ),
    "calibration suffix": (
        full(more='[calibration]\ndataset = "text.md"\n'),
        [":10: calibration.dataset: 'text.md' is neither a .jsonl nor a .txt file. Convert it, or rename it."],
    ),
    "calibration file": (
        full(more='[calibration]\ndataset = "nope.jsonl"\n'),
        [":10: calibration.dataset: 'nope.jsonl' does not exist. Correct the path."],
    ),
    "calibration path": (
        full(more='[calibration]\ndataset = "./texts/nope"\n'),
        [":10: calibration.dataset: './texts/nope' does not exist. Correct the path."],
    ),
    "calibration samples": (
        full(more="[calibration]\nsamples = 0\n"),
        [":10: calibration.samples: must be 1 or more, not 0."],
    ),
    "calibration length": (
        full(more="[calibration]\nsequence_length = true\n"),
        [":10: calibration.sequence_length: must be an integer, not true."],
    ),
    "paths file": (
        full(more='[paths]\nlogs = "text.md/logs"\n'),
        [":10: paths.logs: 'text.md/logs' cannot be a folder: FOLDER/text.md is a file."],
    ),
    "paths blank": (
        full(more='[paths]\nruns = ""\n'),
        [":10: paths.runs: must not be empty."],
    ),
    "compare": (
        full(more='[report]\ncompare = ["arxiv-2409.11055"]\n'),
        [
            ":10: report.compare: unknown study 'arxiv-2409.11055'; known are arxiv-2409.11055v6. Did you mean 'arxiv-2409.11055v6'?"
        ],
    ),
}


def _unknown(manifest: Manifest, *, is_input_error: bool = True) -> Pins:
    """Return the pins of a hub that has no such repositories, or that is not reachable."""
    pin = Pin(commit=None, problem="no hub.", is_input_error=is_input_error)
    return Pins(by_repository=dict.fromkeys(repositories(manifest), pin))


def test_a_hub_that_is_not_reachable_is_no_mistake_of_the_manifest(tmp_path: Path) -> None:
    """A model that cannot be looked up is a SetupError (exit code 3), as for a gated model or a missing network."""
    path = tmp_path / "manifest.toml"
    path.write_text(full(models='[[models]]\nid = "someone/their-own"\n'), encoding="utf-8")
    with pytest.raises(SetupError, match=r"^no hub\.$"):
        load(path, find_pins=lambda manifest: _unknown(manifest, is_input_error=False))


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_an_invalid_manifest_is_reported_exactly(text: str, expected: list[str], tmp_path: Path) -> None:
    """Each mistake is reported with location, key, value and fix, and nothing else is reported."""
    Path("folder").mkdir()
    Path("text.md").touch()
    Path("broken.toml").write_text(BROKEN_PROFILE)
    Path("environments.toml").write_text(PROFILE_OF_ENVIRONMENTS)
    Path("mine.toml").write_text(text)
    with pytest.raises(ManifestError) as raised:
        load(Path("mine.toml"), find_pins=_unknown)
    assert list(raised.value.problems) == [
        "mine.toml" + problem.replace("FOLDER", str(tmp_path)) for problem in expected
    ]


def test_all_problems_are_reported_together() -> None:
    """Mistakes in every table, in the overrides and in the profile are reported together, in the order of the file."""
    Path("broken.toml").write_text(BROKEN_PROFILE)
    Path("mine.toml").write_text("""\
[run]
name = "a/b"
[cluster]
profile = "broken.toml"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M"
[schemes]
use = ["bf16", "gptq-w4a16-g128"]
[tasks]
use = ["arc_chalenge"]
limit = -3
[evaluate]
batchsize = 4
[calibration]
dataset = "nowhere.txt"
""")
    with pytest.raises(ManifestError) as raised:
        load(Path("mine.toml"), ["evaluate.shards=-1", "nonsense"])
    assert [problem.split(": ")[:2] for problem in raised.value.problems] == [
        ["-O nonsense", "use key=value, with a dotted key such as evaluate.batch_size."],
        ["-O evaluate.shards=-1", "evaluate.shards"],
        ["mine.toml:2", "run.name"],
        ["mine.toml:4", "cluster.profile"],
        ["mine.toml:4", "cluster.profile"],
        ["mine.toml:8", "schemes.use"],
        ["mine.toml:10", "tasks.use"],
        ["mine.toml:11", "tasks.limit"],
        ["mine.toml:13", "evaluate.batchsize"],
        ["mine.toml:15", "calibration.dataset"],
    ]


def test_there_are_at_least_forty_kinds_of_mistakes() -> None:
    """The table above contains at least 40 different manifests."""
    assert len({text for text, _ in CASES.values()}) == len(CASES) >= 40
