"""Whether a response does what it was asked: refusal, partial, caveated, alternative, compliance.

`classes` has the taxonomy, `wording` what a sentence does, `classify` the decision from both;
`table` reads a file of responses and `rates` counts, `session` is `phase=evaluate
evaluation.responses=FILE`, without a model, without torch and without the network.
"""
