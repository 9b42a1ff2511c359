"""The model ``vtprune`` of lmms-eval: any model folder, its visual tokens pruned, on all tasks that lmms-eval has.

``lmms_eval --model vtprune --model_args pretrained=FOLDER,policy=fastv,keep_ratio=0.25 --tasks ...``; lmms-eval finds
it by the entry point ``lmms_eval.models``. Nothing else imports this package, and only ``model`` imports lmms-eval.
"""
