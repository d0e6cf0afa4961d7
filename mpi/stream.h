/* stream.h - token windows from rank 0 to both ends of every replica's pipeline, ahead of use.
 *
 * A message is the windows of one replica in one step (or one micro-batch of a pass); while one is
 * used the next is on its way. Only rank 0 holds all windows. */
#pragma once
#include "feed.h"

typedef struct vq_stream {
    vq_job *job;
    const vq_windows *windows;
    int64_t batch;       /* windows a message, over all replicas (steps), or of one (pass) */
    bool is_step;        /* messages are steps of training; otherwise batches of a pass */
    int64_t next, count; /* the next message to be taken, and how many there are */
    vq_tensor ids[2];    /* i32 [max, T]: where messages arrive, in turn */
    vq_request in[2];
    vq_request *out[2]; /* rank 0: [2 n_replicas] */
} vq_stream;

/* The windows [*first, *first + *n) of message `message` for a replica; n may be 0. Pure. */
void vq_stream_share(const vq_stream *stream, int64_t message, int replica, int64_t *first,
                     int64_t *n);

/* Windows of a message over all replicas. Pure. */
int64_t vq_stream_total(const vq_stream *stream, int64_t message);

/* Messages [next, count) of steps of config->train.batch windows each, through the windows again
 * and again. */
vq_status vq_stream_steps(vq_arena *arena, vq_job *job, const vq_windows *windows, int64_t next,
                          int64_t count, vq_stream *stream);

/* A pass that keeps what it finds does so in as many parts: a run that ends loses one at most. */
#define VQ_STREAM_PARTS 16

/* All windows once, `batch` at a time, dealt out to the replicas in turn: the messages that this
 * takes, and the stream of messages [next, count). */
int64_t vq_stream_messages(const vq_job *job, const vq_windows *windows, int64_t batch);
vq_status vq_stream_pass(vq_arena *arena, vq_job *job, const vq_windows *windows, int64_t batch,
                         int64_t next, int64_t count, vq_stream *stream);

/* The next message: windows [*first, *first + *n), and on the ends of the pipeline their ids, i32
 * [n, T], good until the call after the next. Fails: VQ_EPEER. */
vq_status vq_stream_take(vq_stream *stream, int64_t *first, int64_t *n, vq_tensor *ids);

/* Waits until everything sent is through. */
vq_status vq_stream_close(vq_stream *stream);
