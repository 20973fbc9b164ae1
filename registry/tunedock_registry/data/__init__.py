"""Training data without tensors: parse and check, render to tokens with a loss mask, report, split, plan.

lines        bytes -> numbered JSON objects, flat memory
formats      JSON objects -> chat, prompt/completion or preference examples, with every error
render       example -> token ids and loss weights, exactly as the serving engine renders its prompt
"""
