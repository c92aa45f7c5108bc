"""Evaluations: protocols that turn a trained model and held-out data into scores."""

from __future__ import annotations

from jaxlab.evals.attacks import Attack as Attack
from jaxlab.evals.attacks import attack_accuracy as attack_accuracy
from jaxlab.evals.attacks import fgsm as fgsm
from jaxlab.evals.attacks import pgd as pgd
from jaxlab.evals.attacks import random_search as random_search
from jaxlab.evals.card import CardRow as CardRow
from jaxlab.evals.card import RobustnessCard as RobustnessCard
from jaxlab.evals.card import robustness_card as robustness_card
from jaxlab.evals.compression import evaluated_texts as evaluated_texts
from jaxlab.evals.compression import xz_bits_per_byte as xz_bits_per_byte
from jaxlab.evals.corruption_error import corruption_errors as corruption_errors
from jaxlab.evals.corruption_error import errors_by_corruption as errors_by_corruption
from jaxlab.evals.corruption_error import mean_corruption_error as mean_corruption_error
from jaxlab.evals.corruption_error import plain_mean_error as plain_mean_error
from jaxlab.evals.corruption_error import relative_corruption_errors as relative_corruption_errors
from jaxlab.evals.corruption_error import (
    relative_mean_corruption_error as relative_mean_corruption_error,
)
from jaxlab.evals.documents import DocumentScores as DocumentScores
from jaxlab.evals.documents import doubling_edges as doubling_edges
from jaxlab.evals.documents import evaluate_documents as evaluate_documents
from jaxlab.evals.gradient_masking import gradient_masking_checks as gradient_masking_checks
from jaxlab.evals.held_out import HeldOutText as HeldOutText
from jaxlab.evals.held_out import scores_from_json as scores_from_json
from jaxlab.evals.held_out import scores_to_json as scores_to_json
from jaxlab.evals.names import far_names as far_names
from jaxlab.evals.paired import Difference as Difference
from jaxlab.evals.paired import bits_per_byte_difference as bits_per_byte_difference
from jaxlab.evals.paired import bits_per_byte_over_seeds as bits_per_byte_over_seeds
from jaxlab.evals.paired import mean_scores as mean_scores
from jaxlab.evals.paired import word_perplexity_difference as word_perplexity_difference
from jaxlab.evals.prediction import predict as predict
from jaxlab.evals.recall import accuracy_by_block as accuracy_by_block
from jaxlab.evals.stress import Stress as Stress
from jaxlab.evals.weight_noise import WeightNoiseCurve as WeightNoiseCurve
from jaxlab.evals.weight_noise import kept_kernels as kept_kernels
from jaxlab.evals.weight_noise import perturb_weights as perturb_weights
from jaxlab.evals.weight_noise import weight_noise_curve as weight_noise_curve
from jaxlab.evals.weight_noise import worst_case_weights as worst_case_weights

__all__ = [
    "Difference",
    "HeldOutText",
    "bits_per_byte_over_seeds",
    "scores_from_json",
    "scores_to_json",
    "Attack",
    "CardRow",
    "DocumentScores",
    "RobustnessCard",
    "Stress",
    "WeightNoiseCurve",
    "accuracy_by_block",
    "attack_accuracy",
    "bits_per_byte_difference",
    "corruption_errors",
    "doubling_edges",
    "errors_by_corruption",
    "evaluate_documents",
    "evaluated_texts",
    "far_names",
    "fgsm",
    "gradient_masking_checks",
    "kept_kernels",
    "mean_corruption_error",
    "mean_scores",
    "perturb_weights",
    "pgd",
    "plain_mean_error",
    "predict",
    "random_search",
    "relative_corruption_errors",
    "relative_mean_corruption_error",
    "robustness_card",
    "weight_noise_curve",
    "word_perplexity_difference",
    "worst_case_weights",
    "xz_bits_per_byte",
]
