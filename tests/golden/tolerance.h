/* tolerance.h - how close golden tests must come, and why. */
#pragma once

/* Logits of f32 arithmetic in another order of sums: 2 to 4 layers of dot products of some hundred
 * terms give about 1e-6; the limit is the project's. */
#define LOGITS_RELATIVE 1e-4

/* Losses are f32 sums of the reference over tokens and vocabulary. */
#define LOSS_RELATIVE 2e-5

/* Codebook gradients: f32 sums over all vectors of a code, each through the whole backward. */
#define GRADIENT_RELATIVE 1e-4

/* After 20 steps of Adam, whose first steps are lr times the sign of the gradient: elements whose
 * first gradient is below this part of the layer's largest are left out. */
#define GRADIENT_NOISE 1e-5
#define LOSS20_RELATIVE 1e-4
#define CODES20_RELATIVE 1e-3

/* GPTQ. H is f32 in the reference, sums over 240 tokens; where its last bits end up in a scale, a
 * running group's, or in rest, a fraction of a step. Bases are equal, and integers unless a weight
 * is halfway between two as far as f32 can tell. */
#define GPTQ_HESSIAN_RELATIVE 1e-5
#define GPTQ_SCALE_RELATIVE 1e-6f
#define GPTQ_REST 2e-5f
#define GPTQ_TIE 2e-6f

/* The same behind a layer or two: noise of 2e-7 in the inputs moves rest by up to 1e-5,
 * and with it the weights that a running group's scale is found from. */
#define GPTQ_MODEL_REST 5e-5f
#define GPTQ_MODEL_SCALE_RELATIVE 1e-5f
