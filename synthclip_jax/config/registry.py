"""What can be chosen by a name in a config, and where it is: adding one is a file of its own and a line here.

Nothing of it is imported before it is asked for; `pkgutil.resolve_name` gives it.
"""

# gen.captions.engine; see `gen/engines/interface.py`
CAPTION_ENGINES = {
    "vllm": "gen.engines.vllm:VLLMEngine",
    "transformers": "gen.engines.language:TransformersEngine",
    "templates": "gen.engines.templates:TemplatesEngine",
}
# gen.images.engine
IMAGE_ENGINES = {
    "diffusers": "gen.engines.diffusion:DiffusersEngine",
    "flax": "gen.engines.stable_diffusion.engine:FlaxEngine",
    "sprites": "gen.engines.sprites:SpritesEngine",
}
# gen.recaption.engine: they describe images
VISION_ENGINES = {
    "vllm": "gen.engines.vllm:VLLMVisionEngine",
    "transformers": "gen.engines.vision:TransformersVisionEngine",
}
# Traits of engines, for checks and cards, which load none. One without a line here runs a model, and draws at any size.
WITHOUT_MODEL = {  # and what a card says in the model's place
    "templates": "sentence templates; no language model",
    "sprites": "`sprites`, a procedural renderer of Twemoji art, CC-BY 4.0",
}
SIZE_STEP = {"diffusers": 8, "flax": 8}  # of which gen.images.generate_size is a multiple: the VAE's stride
# config.eval.suites; see `synthclip_jax.evals.suite`
SUITES = {
    "zeroshot": "synthclip_jax.evals.zeroshot:ZeroShot",
    "retrieval": "synthclip_jax.evals.retrieval:Retrieval",
    "linear_probe": "synthclip_jax.evals.linear_probe:LinearProbe",
    "fewshot": "synthclip_jax.evals.fewshot:FewShot",
    "embedding": "synthclip_jax.evals.embedding:Embedding",
    "compositional": "synthclip_jax.evals.compositional:Compositional",
    "corruptions": "synthclip_jax.evals.corruptions:Corruptions",
}
# config.eval.corruptions.kinds; see `synthclip_jax.evals.image_corruptions`. A kind's group is its module
CORRUPTIONS = {
    "gaussian_noise": "synthclip_jax.evals.image_corruptions.noise:gaussian_noise",
    "shot_noise": "synthclip_jax.evals.image_corruptions.noise:shot_noise",
    "impulse_noise": "synthclip_jax.evals.image_corruptions.noise:impulse_noise",
    "defocus_blur": "synthclip_jax.evals.image_corruptions.blur:defocus_blur",
    "glass_blur": "synthclip_jax.evals.image_corruptions.blur:glass_blur",
    "motion_blur": "synthclip_jax.evals.image_corruptions.blur:motion_blur",
    "zoom_blur": "synthclip_jax.evals.image_corruptions.blur:zoom_blur",
    "snow": "synthclip_jax.evals.image_corruptions.weather:snow",
    "frost": "synthclip_jax.evals.image_corruptions.weather:frost",
    "fog": "synthclip_jax.evals.image_corruptions.weather:fog",
    "brightness": "synthclip_jax.evals.image_corruptions.weather:brightness",
    "contrast": "synthclip_jax.evals.image_corruptions.digital:contrast",
    "elastic_transform": "synthclip_jax.evals.image_corruptions.digital:elastic_transform",
    "pixelate": "synthclip_jax.evals.image_corruptions.digital:pixelate",
    "jpeg_compression": "synthclip_jax.evals.image_corruptions.digital:jpeg_compression",
}
# KIND of config.eval.datasets; see `synthclip_jax.evals.datasets.spec.Dataset`
TEST_SETS = {
    "wds": "synthclip_jax.evals.datasets.webdataset:WebDataset",
    "folder": "synthclip_jax.evals.datasets.folder:ImageFolder",
    "tfds": "synthclip_jax.evals.datasets.tfds:Prepared",
    "karpathy": "synthclip_jax.evals.datasets.karpathy:Karpathy",
    "choice": "synthclip_jax.evals.datasets.choice:Choice",
}
# KIND of config.data.sources; see `synthclip_jax.data.readers.reader.Reader`
SOURCES = {
    "tfrecord": "synthclip_jax.data.readers.examples:open_tfrecords",
    "img2dataset": "synthclip_jax.data.readers.examples:open_img2dataset",
    "wds": "synthclip_jax.data.readers.tars:TarReader",
    "tfds": "synthclip_jax.data.readers.tfds:open_tfds",
    "table": "synthclip_jax.data.readers.tables:TableReader",
    "parquet": "synthclip_jax.data.readers.embedded:open_parquet",
    "arrow": "synthclip_jax.data.readers.embedded:open_arrow",
}
# config.train.optimizer: what makes the updates, between the clipping of gradients and the learning rate
OPTIMIZERS = {
    "adamw": "synthclip_jax.training.optim:adamw",
    "lion": "synthclip_jax.training.lion:lion",
    "muon": "synthclip_jax.training.muon:muon",
}
