"""PPO on a problem whose optimum is known: one prompt, responses of one token.

The objective `E[score] - kl_coef * KL(policy || reference)` is then a sum over the vocabulary, and
its best value among the policies that the adapter can express is found by exact gradient ascent,
without sampling, advantages, values or clipping.

In the loss the penalty stands beside whitened advantages, so `kl_coef` counts in standard
deviations of the score under the policy: there the optimum is the policy that is best for the
coefficient that its own standard deviation gives.
"""

import pytest
import torch

from cai import adapters
from cai.choices import KLEstimator, KLPlace
from cai.rollout import Sampled
from cai.training import train_ppo
from tests.tiny import (
    EOS_ID,
    VOCAB_SIZE,
    hardware,
    ppo_config,
    ppo_setup,
    preference_head,
    token_score,
)

PROMPT = (11, 12, 13)


def token_logprobs(model, adapter):
    with adapters.active(model, adapter):
        return model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)


class Bandit:
    def __init__(self, seed, kl_coef, where):
        self.seed, self.kl_coef, self.where = seed, kl_coef, where
        self.model, self.value = ppo_setup(seed)
        with torch.no_grad():
            self.reference = token_logprobs(self.model, "reference")
        self.preference = preference_head(seed)
        self.score = token_score(self.model, self.preference, micro_batch_size=VOCAB_SIZE)
        self.preference.calibrate(self._scores().tolist())
        self.scores = self._scores()

    def _scores(self):
        every_token = [(PROMPT, (token, EOS_ID)) for token in range(VOCAB_SIZE)]
        return torch.tensor(self.score(every_token))

    def weight(self, logp):
        """Of the KL against a score, under a policy."""
        if self.where is KLPlace.reward:
            return self.kl_coef
        prob = logp.detach().exp()
        mean = (prob * self.scores).sum()
        return self.kl_coef * float((prob * (self.scores - mean).square()).sum().sqrt())

    def objective(self, logp, weight):
        return (logp.exp() * (self.scores - weight * (logp - self.reference))).sum()

    def exact_ascent(self):
        with adapters.training(self.model, "policy"):
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            adam = torch.optim.Adam(parameters, lr=1e-2)
            for _ in range(150):
                logp = token_logprobs(self.model, "policy")
                value = self.objective(logp, self.weight(logp))
                adam.zero_grad()
                (-value).backward()
                adam.step()
        return float(value.detach()), self.weight(logp)

    def sample(self, iteration):
        with torch.no_grad():
            logp = token_logprobs(self.model, "policy")
        generator = torch.Generator().manual_seed(1000 * self.seed + iteration)
        drawn = torch.multinomial(logp.exp(), 64, replacement=True, generator=generator)
        return [
            Sampled(prompt_ids=PROMPT, response_ids=(token,), finished=False)
            for token in drawn.tolist()
        ]

    def ppo(self, work_dir):
        train_ppo(
            self.model,
            value=self.value,
            policy_adapter="policy",
            reference_adapter="reference",
            score=self.score,
            sample=self.sample,
            config=ppo_config(
                3e-3,
                num_iterations=30,
                rollouts_per_iteration=64,
                max_new_tokens=1,
                missing_eos_penalty=0.0,
                kl_coef=self.kl_coef,
                kl_where=self.where,
                kl_estimator=KLEstimator.k1 if self.where is KLPlace.reward else KLEstimator.k2,
                checkpoint_every=100,
            ),
            seed=self.seed,
            hardware=hardware(64),
            work_dir=work_dir,
            on_step=lambda step, metrics: None,
            on_rollout=lambda iteration, batch: None,
            pad_id=EOS_ID,
            stage="policy",
        )
        with torch.no_grad():
            return token_logprobs(self.model, "policy")


@pytest.mark.parametrize(
    ("seed", "kl_coef", "where"),
    [(1, 0.5, KLPlace.reward), (0, 1.0, KLPlace.reward), (1, 0.5, KLPlace.loss)],
)
def test_ppo_reaches_the_optimum(tmp_path, seed, kl_coef, where):
    exact, bandit = Bandit(seed, kl_coef, where), Bandit(seed, kl_coef, where)
    best, weight = exact.exact_ascent()
    start = float(bandit.objective(bandit.reference, weight))
    reached = float(bandit.objective(bandit.ppo(tmp_path), weight))
    # With 64 responses a round the sampling noise costs some per cent; with 512 it was 3 to 4. With
    # a third or three times the penalty in the loss, 0.66 and 0.55 of the way were reached.
    assert best - start > 0.2
    assert start + 0.8 * (best - start) < reached < best + 1e-3
