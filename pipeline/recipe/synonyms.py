"""What other tools call our keys and losses: names people know from TRL, OpenRLHF, LLaMA-Factory, axolotl, NeMo-RL and
open-instruct. Data alone. A name may be told with its section ("score.batch_size"), and then it holds there only.

Keys stand here as `--set` takes them: those of the cluster file begin with "cluster.".
"""

# The same thing by another name.
SAME = {
    # models and data
    **dict.fromkeys(("model_name_or_path", "model_name", "model_path", "base_model", "pretrain"), "model"),
    **dict.fromkeys(("train.model", "policy_model", "actor_model", "sft_model_path"), "train.policy"),
    "reference": "score.model",
    **dict.fromkeys(("shard.model", "tokenizer_name", "tokenizer_name_or_path", "tokenizer_path"), "shard.tokenizer"),
    **dict.fromkeys(
        ("dataset", "datasets", "dataset_name", "dataset_path", "dataset_mixer", "dataset_mixer_list", "data_path",
         "data_files", "train_file", "train_data", "train_data_path", "prompt_data", "train_path"), "shard.source",
    ),
    **dict.fromkeys(("dataset_config", "dataset_config_name"), "shard.subset"),
    **dict.fromkeys(("dataset_split", "train_split", "dataset_train_split"), "shard.split"),
    **dict.fromkeys(
        ("eval_dataset", "eval_split", "dataset_test_split", "val_size", "val_set_size", "test_size"),
        "shard.eval_fraction",
    ),
    **dict.fromkeys(("max_samples", "max_train_samples", "num_samples"), "shard.limit"),
    **dict.fromkeys(("prompt_key", "prompt_column"), "shard.columns.prompt"),
    **dict.fromkeys(("chosen_key", "chosen_column"), "shard.columns.chosen"),
    **dict.fromkeys(("rejected_key", "rejected_column"), "shard.columns.rejected"),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "max_sequence_length", "sequence_len", "cutoff_len", "max_len", "seq_length",
         "model_max_length", "max_model_len", "vllm_max_model_len", "max_total_sequence_length"), "shard.max_length",
    ),
    "prompt_max_len": "shard.max_prompt_length",
    **dict.fromkeys(("chat_template", "tokenizer_chat_template"), "shard.chat.template"),
    **dict.fromkeys(("truncation_mode", "truncation_side"), "shard.truncation"),
    # the loss
    **dict.fromkeys(("loss_type", "pref_loss", "preference_loss", "dpo_loss_type", "objective"), "train.loss"),
    **dict.fromkeys(
        ("beta", "dpo_beta", "pref_beta", "rl_beta", "simpo_beta", "reference_policy_kl_penalty"), "train.loss.beta"
    ),
    **dict.fromkeys(("label_smoothing", "dpo_label_smoothing"), "train.loss.label_smoothing"),
    "simpo_gamma": "train.loss.gamma",
    "cpo_alpha": "train.loss.nll",
    "orpo_alpha": "train.loss.beta",
    "f_divergence_type": "train.loss.divergence",
    "f_alpha_divergence_coef": "train.loss.divergence_alpha",
    "use_weighting": "train.loss.wpo",
    "discopop_tau": "train.loss.tau",
    "dpop_lambda": "train.loss.penalty",
    **dict.fromkeys(("odpo_alpha", "offset_alpha"), "train.loss.margin_scale"),
    "sft_average_log_probs": "train.loss.mean_over",
    # optimization
    **dict.fromkeys(("optim", "optimizer_type", "optimizer_name"), "train.optimizer"),
    **dict.fromkeys(("learning_rate", "actor_learning_rate", "max_lr"), "train.lr"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "lr_schedule", "scheduler"), "train.schedule"),
    **dict.fromkeys(("warmup_ratio", "lr_warmup_ratio", "warmup"), "train.warmup_fraction"),
    **dict.fromkeys(("num_warmup_steps", "lr_warmup_steps"), "train.warmup_steps"),
    **dict.fromkeys(("min_lr_ratio", "min_lr_rate", "lr_min_ratio", "cosine_min_lr_ratio"), "train.min_lr_fraction"),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "global_batch_size", "train_global_batch_size"), "train.global_batch"
    ),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "max_epochs", "max_num_epochs", "epoch"), "train.epochs"),
    **dict.fromkeys(("max_train_steps", "max_num_steps", "num_steps"), "train.max_steps"),
    **dict.fromkeys(("clip_grad", "grad_clip", "gradient_clipping", "max_norm"), "train.max_grad_norm"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "betas"), "train.adam_betas"),
    **dict.fromkeys(("adam_epsilon", "epsilon", "eps"), "train.adam_eps"),
    "data_seed": "train.seed",
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "val_period", "eval_interval"), "train.eval_steps"),
    "load_best_model_at_end": "train.export",
    "metric_for_best_model": "train.best_metric",
    "greater_is_better": "train.best_is",
    **dict.fromkeys(("early_stopping_patience", "early_stopping", "early_stopping_steps"), "train.patience"),
    # adapters
    **dict.fromkeys(("use_peft", "use_lora", "peft_config", "lora_config", "adapter", "finetuning_type"), "train.lora"),
    **dict.fromkeys(("lora_r", "lora_rank", "train.lora.r"), "train.lora.rank"),
    "lora_alpha": "train.lora.alpha",
    "use_rslora": "train.lora.rank_stabilized",
    **dict.fromkeys(("lora_target_modules", "lora_target", "target_modules"), "train.lora.targets"),
    # watching
    **dict.fromkeys(("run_name", "exp_name", "experiment_name", "wandb_run_name"), "name"),
    "wandb_project": "wandb.project",
    "wandb_entity": "wandb.entity",
    "use_tensorboard": "tensorboard",
    # places
    **dict.fromkeys(
        ("output_dir", "save_path", "save_dir", "checkpoint_dir", "ckpt_path", "logging_dir"), "cluster.root"
    ),
    **dict.fromkeys(("work_dir", "cache_dir", "tmp_dir"), "cluster.work"),
    **dict.fromkeys(("ray_address", "ray_init_address"), "cluster.address"),
    **dict.fromkeys(("env", "environment", "runtime_env"), "cluster.env_vars"),
    # machines and memory
    **dict.fromkeys(("num_workers", "nproc_per_node", "num_processes", "world_size"), "cluster.train.workers"),
    "max_restarts": "cluster.train.restarts",
    "max_failures": "cluster.train.restarts",
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpoint", "use_gradient_checkpointing"),
        "cluster.train.activation_checkpointing"),
    "torch_compile": "cluster.train.compile",
    **dict.fromkeys(("adam_offload", "offload", "offload_optimizer", "fsdp_cpu_offload"), "cluster.train.cpu_offload"),
    **dict.fromkeys(("context_parallel_size", "cp_size", "sequence_parallel_size", "sp_size", "ring_attn_size"),
        "cluster.train.context_parallel"),
    **dict.fromkeys(("fsdp_shard_size", "dp_shard_size", "data_parallel_shard_degree", "hsdp_shard_dim"),
        "cluster.train.shard_size"),
    **dict.fromkeys(("save_steps", "save_period", "save_interval"), "cluster.train.checkpoint_steps"),
    **dict.fromkeys(("save_total_limit", "max_ckpt_num", "keep_last_n_checkpoints"), "cluster.train.keep_checkpoints"),
    **dict.fromkeys(("tensor_parallel_size", "tp_size", "vllm_tensor_parallel_size"), "cluster.score.gpus_per_actor"),
    **dict.fromkeys(("vllm_num_engines", "num_actors", "score.workers", "score.num_workers"), "cluster.score.actors"),
    **dict.fromkeys(("gpu_memory_utilization", "vllm_gpu_memory_utilization"), "cluster.score.memory_fraction"),
    "preprocessing_batch_size": "cluster.shard.rows_per_task",
    # sections
    **dict.fromkeys(("data", "preprocessing", "tokenization"), "shard"),
    **dict.fromkeys(("scoring", "reference_logps"), "score"),
    **dict.fromkeys(("training", "trainer", "training_args", "dpo", "optimization"), "train"),
}  # fmt: skip

BATCH = (
    "there is none: train.global_batch is the batch of an optimizer step whatever the number of workers, and "
    "cluster.train.max_tokens_per_microbatch bounds memory"
)
REFERENCE = "there is none: the reference is score.model, and training reads its cached log-probs"
CACHED = "there is none: log-probs of the reference are always computed first, once, by score, and kept"
PRECISION = (
    "there is none: train.dtype is of training's forward and backward pass, score.dtype of the reference, each float32 "
    "or bfloat16; weights and optimizer stay float32"
)
PACKED = (
    "there is none: pairs always stand without padding, up to cluster.train.max_tokens_per_microbatch tokens of them"
)
SHARDED = (
    "there is none: FSDP2 always shards over cluster.train.workers; cluster.train.cpu_offload trades speed for memory"
)
CONTINUED = "there is none: the same recipe is the same folder, and running it again goes on from its last checkpoint"
QUANTIZED = (
    "score.quantize and train.quantize, both nf4, hold the base model under train.lora in four bits; that is all"
)
EXPORTED = "there is none: a run ends with the folder of the policy in Hugging Face's format; push that"
ATTENTION = "there is none: pairs share their prompt, and attention over that layout is raydpo's own"
LOGGED = "there is none: every step is a line of metrics.jsonl beside the policy"
TRACKED = "there is none: set wandb.project, or tensorboard: true"
ROUNDS = "there is none: rounds: 2 or more trains, scores with the new policy, and trains on (TR-DPO's hard update)"
MACHINES = "there is none: cluster.train.workers are all processes of training, each with cluster.train.gpus_per_worker"
CPUS = "there is none: Ray takes the CPUs there are, cluster.shard.rows_per_task rows at a time"
LENGTH = (
    "there is none: shard.max_length bounds prompt and completion together, shard.max_prompt_length what a prompt keeps"
)
DROPOUT = "there is none: models run without dropout, else log-probs could not be compared with cached ones"
SFT_TERM = (
    "of rpo and cpo it is train.loss.nll; beside others it is a loss in a list: [dpo, {name: sft, weight: 0.2}]; which "
    "of them averages as yours does is a table of stages/train/README.md"
)

# What there is no key for, and why; or what is done with other keys.
OTHERWISE = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_batch_size", "micro_train_batch_size", "train_micro_batch_size",
         "micro_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size", "eval_batch_size"), BATCH,
    ),
    "score.batch_size": "cluster.score.max_num_seqs is vLLM's, cluster.score.max_tokens_per_batch the torch scorer's",
    **dict.fromkeys(("bf16", "fp16", "torch_dtype", "precision", "mixed_precision", "param_dtype"), PRECISION),
    **dict.fromkeys(
        ("ref_model", "reference_model", "model_ref", "ref_model_path", "reference_model_name_or_path", "ref_pretrain",
         "ref_model_name_or_path", "train.reference"), REFERENCE,
    ),
    **dict.fromkeys(
        ("precompute_ref_log_probs", "precompute_ref_batch_size", "reference_logprobs_cache_path"), CACHED
    ),
    **dict.fromkeys(("sync_ref_model", "ref_model_sync_steps", "ref_model_mixup_alpha"), ROUNDS),
    "reference_free": "take a train.loss that needs no reference: simpo, orpo, cpo, sft; score is not run then",
    **dict.fromkeys(("rpo_alpha", "pref_ftx", "sft_loss_weight", "nll_loss_coef", "chosen_nll_loss"), SFT_TERM),
    **dict.fromkeys(
        ("loss_weights", "preference_loss_weight"),
        "train.loss takes a list, with a weight each: [{name: dpo, weight: 0.8}, {name: sft, weight: 0.2}]",
    ),
    **dict.fromkeys(
        ("min_lr", "lr_scheduler_kwargs"), "train.min_lr_fraction times train.lr is where train.schedule ends"
    ),
    "early_stopping_threshold": "there is none: any gain counts, and train.patience is how long one may take",
    "shuffle": "there is none: pairs are always shuffled, by train.seed, in windows of train.shuffle_window",
    **dict.fromkeys(("dropout", "disable_dropout", "lora_dropout", "attention_dropout"), DROPOUT),
    **dict.fromkeys(
        ("max_completion_length", "max_target_length", "max_response_length", "generate_max_len"), LENGTH
    ),
    **dict.fromkeys(("dataset_num_proc", "preprocessing_num_workers", "num_proc"), CPUS),
    "dataloader_num_workers": "there is none: parts are mapped from each node's disk, see cluster.train.cache",
    "remove_unused_columns": "there is none: the columns that shard.columns names are read, others are not",
    "save_strategy": "cluster.train.checkpoint_steps and cluster.train.checkpoint_minutes say when one is saved",
    **dict.fromkeys(("logging_steps", "logging_strategy", "log_interval"), LOGGED),
    **dict.fromkeys(("report_to", "use_wandb", "with_tracking", "log_with", "logger"), TRACKED),
    **dict.fromkeys(("deepspeed", "zero_stage", "fsdp", "fsdp_config", "ds_config"), SHARDED),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "use_qlora", "quantization", "quantization_bit"), QUANTIZED),
    **dict.fromkeys(("attn_implementation", "flash_attn", "use_flash_attn", "use_flash_attention_2"), ATTENTION),
    **dict.fromkeys(
        ("padding_free", "packing", "sample_packing", "packing_samples", "group_by_length", "sequence_packing"), PACKED
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "use_liger_loss", "liger"), "there is none: logits of all tokens are never held at once"
    ),
    **dict.fromkeys(
        ("resume_from_checkpoint", "resume", "load_checkpoint", "auto_resume_from_checkpoints"), CONTINUED
    ),
    **dict.fromkeys(("overwrite_output_dir", "overwrite"), CONTINUED + "; to make it anew, delete the folder"),
    **dict.fromkeys(("push_to_hub", "hub_model_id"), EXPORTED),
    **dict.fromkeys(("num_gpus", "n_gpus", "num_gpus_per_node", "num_nodes", "num_machines"), MACHINES),
    "num_cpus": "there is none: cluster.train.cpus_per_worker is of training, cluster.score.cpus_per_actor of scoring",
    **dict.fromkeys(
        ("min_workers", "max_workers"), "cluster.train.workers takes both: cluster.train.workers: {min: 4, max: 16}"
    ),
    **dict.fromkeys(
        ("model_revision", "revision"), "there is none: it is a part of the name, model: org/name@revision"
    ),
    "trust_remote_code": "there is none: code that comes with a model is not run; take one that transformers has",
    "enforce_eager": "there is none: scoring is all prefill, and the engine always runs eagerly",
    "cluster": "it is a file of its own: --cluster FILE, or --set cluster.train.workers=4 for a key of it",
}  # fmt: skip

# Names of losses that are not ours, or that several losses have.
LOSSES = {
    "cdpo": "conservative DPO is sigmoid with label_smoothing: {name: sigmoid, label_smoothing: 0.1}",
    "rdpo": "robust DPO is robust; DPO that regularises length is r_dpo",
    "robust_dpo": "it is robust",
    "ld_dpo": "LD-DPO is sigmoid with ld_alpha: {name: sigmoid, ld_alpha: 0.5}",
    "wpo": "WPO is sigmoid with wpo: {name: sigmoid, wpo: true}",
    "f_dpo": "f-DPO is sigmoid with divergence: {name: sigmoid, divergence: js}",
    "fdpo": "f-DPO is sigmoid with divergence: {name: sigmoid, divergence: js}",
    "kl": "the KL divergence is what beta weighs in each loss with a reference; sigmoid has divergence for others",
    "js": "it is a divergence: {name: sigmoid, divergence: js}",
    "tr_dpo": "TR-DPO is sigmoid, with rounds: 2 or more",
    "iterative_dpo": "it is sigmoid, with rounds: 2 or more",
    "mpo": "MPO is a list: [{name: sigmoid, weight: 0.8}, {name: bco_pair, weight: 0.2}, sft]",
    "sum": "a sum in a sum is one list, each loss with the product of its weights",
    **dict.fromkeys(
        ("dpo_norm", "length_normalized_dpo", "ln_dpo"), "length-normalised DPO is sigmoid_norm; its beta is 5"
    ),
    **dict.fromkeys(
        ("slic", "slic_hf", "rso"), "SLiC's hinge loss is hinge; with its SFT term cpo_hinge, or a list with sft"
    ),
    "kto_pair": "take kto with shard.rows: labelled, which unrolls a pair into two labelled completions",
    "nca": "NCA of pairs is nca_pair",
    "exo": "EXO of pairs is exo_pair",
    "sppo": "SPPO with certain wins is sppo_hard",
    "apo": "take apo_zero where the policy is worse than the completions, apo_down where it is better",
    "aot_pair": "AOT of pairs is aot; aot_unpaired sorts chosen and rejected apart",
    **dict.fromkeys(("nll", "lm", "cross_entropy"), "the negative log-likelihood of chosen is sft"),
    **dict.fromkeys(("dpo_positive", "smaug", "dpo_p"), "DPO-Positive is dpop"),
    "offset_dpo": "DPO with an offset is odpo",
    **dict.fromkeys(
        ("online_dpo", "grpo", "ppo"), "raydpo trains on given completions; nearest is sigmoid with rounds: 2"
    ),
}
