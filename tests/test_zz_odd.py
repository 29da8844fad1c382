from tests.test_runs import *
import pytest
@pytest.mark.parametrize("more", [
 ("--data.batch_size",4,"--trainer.accumulate_grad_batches",2,"--trainer.max_epochs",2),
 ("--data.batch_size",4,"--trainer.accumulate_grad_batches",2,"--trainer.max_steps",4),
 ("--data.batch_size",4,"--trainer.accumulate_grad_batches",1,"--trainer.max_epochs",2),
 ("--data.tokens_per_batch",500,"--trainer.accumulate_grad_batches",1,"--trainer.max_epochs",2),
 ("--data.tokens_per_batch",500,"--trainer.accumulate_grad_batches",2,"--trainer.max_epochs",2),
], ids=str)
def test_odd(rows, tmp_path, more):
    more = (*more, "--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1)
    whole = tmp_path / "whole"
    e=ok(lit_align(*words(whole, rows, *more)))
    steps = sorted(int(path.stem.removeprefix("step=")) for path in (whole / "checkpoints").glob("step=*.ckpt"))
    out=[]
    for step in steps[:-1]:
        resumed = tmp_path / f"from_{step}"
        ok(lit_align(*words(resumed, rows, *more, "--ckpt_path", whole / "checkpoints" / f"step={step}.ckpt")))
        out.append((step,distance(weights(whole), weights(resumed)), [l["step"] for l in metrics(resumed)]))
    print("RES", more[:6], steps, [l for l in e.out.splitlines() if "batches " in l], out)
