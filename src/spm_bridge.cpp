// spm_bridge - the calls of spm_bridge.h; no exception leaves them.
#include "spm_bridge.h"

#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

struct vq_spm {
    sentencepiece::SentencePieceProcessor processor;
    std::vector<int> ids;
};

static_assert(sizeof(int) == sizeof(int32_t), "ids are handed out as they are");

int vq_spm_open(const void *model, size_t n_bytes, vq_spm **out, char *reason, size_t n_reason)
{
    // A serialized message continues one before it: this sets normalizer_spec (field 3) to
    // add_dummy_prefix (3) = false, remove_extra_whitespaces (4) = false.
    static const char settings[] = {0x1a, 4, 0x18, 0, 0x20, 0};
    *out = nullptr;
    try {
        vq_spm *spm = new vq_spm;
        std::string bytes(static_cast<const char *>(model), n_bytes);
        bytes.append(settings, sizeof settings);
        auto status = spm->processor.LoadFromSerializedProto(bytes);
        if (status.ok()) {
            *out = spm;
            return 0;
        }
        std::snprintf(reason, n_reason, "%s", status.ToString().c_str());
        delete spm;
    } catch (const std::exception &e) {
        std::snprintf(reason, n_reason, "%s", e.what());
    }
    return 1;
}

void vq_spm_close(vq_spm *spm)
{
    delete spm;
}

int vq_spm_size(const vq_spm *spm)
{
    return spm->processor.GetPieceSize();
}

const char *vq_spm_piece(const vq_spm *spm, int id, size_t *n_bytes, int *is_control)
{
    const std::string &piece = spm->processor.IdToPiece(id);
    *n_bytes = piece.size();
    *is_control = spm->processor.IsControl(id);
    return piece.data();
}

int vq_spm_unknown(const vq_spm *spm)
{
    return spm->processor.unk_id();
}

int vq_spm_encode(vq_spm *spm, const char *text, size_t n_bytes, const int32_t **ids, size_t *count)
{
    try {
        if (!spm->processor.Encode({text, n_bytes}, &spm->ids).ok()) return 1;
    } catch (const std::exception &) {
        return 1;
    }
    *ids = spm->ids.data();
    *count = spm->ids.size();
    return 0;
}
