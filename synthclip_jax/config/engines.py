"""The engines of generation: import strings by name. A new engine is a file of its own in gen/engines and a line here.

Nothing is loaded by a string. What an engine has to have is in `gen/engines/interface.py`.
"""

CAPTION_ENGINES = {
    "vllm": "gen.engines.vllm:VLLMEngine",
    "transformers": "gen.engines.language:TransformersEngine",
    "templates": "gen.engines.templates:TemplatesEngine",
}
IMAGE_ENGINES = {
    "diffusers": "gen.engines.diffusion:DiffusersEngine",
    "sprites": "gen.engines.sprites:SpritesEngine",
}
# They describe images: `config.gen.recaption`.
VISION_ENGINES = {
    "vllm": "gen.engines.vllm:VLLMVisionEngine",
    "transformers": "gen.engines.vision:TransformersVisionEngine",
}
