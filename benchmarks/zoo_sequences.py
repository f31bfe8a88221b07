"""Architectures of the zoo that listen, read, and watch films."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers as hf
from zoo_entry import CODEC, PATCHES, SPEECH, TINY, image, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo_entry import Made


def _sew() -> Made:
    return hf.SEWForCTC(hf.SEWConfig(**SPEECH, squeeze_factor=2)), torch.randn(2, 800)


def _whisper() -> Made:
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=20,
    )  # fmt: skip
    return hf.models.whisper.modeling_whisper.WhisperEncoder(config), torch.randn(2, 8, 40)


def _ast() -> Made:
    config = hf.ASTConfig(**TINY, patch_size=8, max_length=32, num_mel_bins=16, frequency_stride=4, time_stride=4)
    return hf.ASTForAudioClassification(config), torch.randn(2, 32, 16)


def _hifigan() -> Made:
    config = hf.SpeechT5HifiGanConfig(
        model_in_dim=8, upsample_initial_channel=16, upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    return hf.SpeechT5HifiGan(config), torch.randn(2, 12, 8)


def _dac() -> Any:
    return hf.DacModel(
        hf.DacConfig(encoder_hidden_size=4, downsampling_ratios=[2, 2], decoder_hidden_size=16, n_codebooks=1)
    )


def _encodec() -> Any:
    return hf.EncodecModel(hf.EncodecConfig(**CODEC))


def _videomae() -> Made:
    config = hf.VideoMAEConfig(**{**TINY, "image_size": 16}, patch_size=8, num_frames=4)
    return hf.VideoMAEForVideoClassification(config), torch.randn(2, 4, 3, 16, 16)


def _vivit() -> Made:
    config = hf.VivitConfig(**{**TINY, "image_size": 16}, num_frames=4, tubelet_size=[2, 8, 8])
    return hf.VivitForVideoClassification(config), torch.randn(2, 4, 3, 16, 16)


def _gpt2() -> Made:
    config = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, use_cache=False)
    return hf.GPT2LMHeadModel(config), tokens()


def _squeezebert() -> Made:
    config = hf.SqueezeBertConfig(
        **TINY, embedding_size=16, vocab_size=50, q_groups=2, k_groups=2, v_groups=2, intermediate_groups=2,
        output_groups=2, post_attention_groups=1,
    )  # fmt: skip
    return hf.SqueezeBertForSequenceClassification(config), tokens()


def _bert() -> Made:
    words = tokens()
    return hf.BertForSequenceClassification(hf.BertConfig(**TINY, vocab_size=50)), {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
    }


def _clip() -> Made:
    text, vision = {**TINY, "vocab_size": 50, "max_position_embeddings": 16}, PATCHES
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return hf.CLIPModel(config), {"input_ids": tokens(), "pixel_values": image()}


def _mamba() -> Made:
    config = hf.MambaConfig(
        hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=50, use_cache=False, conv_kernel=4
    )
    return hf.MambaForCausalLM(config), tokens()


def _whisper_full() -> Made:
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50, num_mel_bins=8, max_source_positions=10,
        max_target_positions=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        use_cache=False,
    )  # fmt: skip
    inputs = {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": tokens(5)}
    return hf.WhisperForConditionalGeneration(config), inputs


def _speech2text() -> Made:
    config = hf.Speech2TextConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=50,
        max_target_positions=20, conv_channels=16, input_feat_per_channel=8, use_cache=False,
    )  # fmt: skip
    return hf.Speech2TextModel(config), {"input_features": torch.randn(2, 20, 8), "decoder_input_ids": tokens(5)}


def _data2vec_audio() -> Made:
    config = hf.Data2VecAudioConfig(**{**SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5})
    return hf.Data2VecAudioModel(config), torch.randn(2, 800)


def _conformer() -> Made:
    config = hf.Wav2Vec2ConformerConfig(**SPEECH, conv_depthwise_kernel_size=3)
    return hf.Wav2Vec2ConformerModel(config), torch.randn(2, 800)


def _wav2vec2_bert() -> Made:
    config = hf.Wav2Vec2BertConfig(**TINY, feature_projection_input_dim=8, conv_depthwise_kernel_size=3)
    return hf.Wav2Vec2BertModel(config), torch.randn(2, 20, 8)


def _moonshine() -> Made:
    config = hf.MoonshineConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
    )  # fmt: skip
    return hf.MoonshineModel(config).encoder, torch.randn(2, 2000)


def _univnet() -> Made:
    config = hf.UnivNetConfig(
        model_in_channels=8, model_hidden_channels=8, num_mel_bins=8, resblock_kernel_sizes=[3, 3],
        resblock_stride_sizes=[2, 2], resblock_dilation_sizes=[[1, 3], [1, 3]], kernel_predictor_num_blocks=1,
        kernel_predictor_hidden_channels=8,
    )  # fmt: skip
    inputs = {"input_features": torch.randn(2, 10, 8), "noise_sequence": torch.randn(2, 10, 8)}
    return hf.UnivNetModel(config), inputs


def _vits() -> Made:
    config = hf.VitsConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16,
        spectrogram_bins=9, posterior_encoder_num_wavenet_layers=1, prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1, upsample_initial_channel=16, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        duration_predictor_num_flows=1, duration_predictor_filter_channels=16,
    )  # fmt: skip
    return hf.VitsModel(config).decoder, torch.randn(2, 16, 10)


def _mimi() -> Any:
    return hf.MimiModel(
        hf.MimiConfig(
            num_filters=4, hidden_size=16, upsampling_ratios=[2, 2], num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, intermediate_size=16, codebook_size=16, codebook_dim=8,
            vector_quantization_hidden_dimension=8, upsample_groups=16,
        )
    )  # fmt: skip


def _timesformer() -> Made:
    config = hf.TimesformerConfig(**{**TINY, "image_size": 16}, patch_size=8, num_frames=4)
    return hf.TimesformerForVideoClassification(config), torch.randn(2, 4, 3, 16, 16)


def _layoutlm() -> Made:
    config = hf.LayoutLMv3Config(
        **TINY, vocab_size=50, input_size=32, patch_size=8, coordinate_size=2, shape_size=4,
        max_2d_position_embeddings=64,
    )  # fmt: skip
    boxes = torch.randint(0, 60, (2, 7, 4))
    return hf.LayoutLMv3Model(config), {"input_ids": tokens(), "bbox": boxes, "pixel_values": image()}


def _mamba2() -> Made:
    config = hf.Mamba2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=8, expand=2, num_heads=4, head_dim=8,
        n_groups=1, chunk_size=4, use_cache=False,
    )  # fmt: skip
    return hf.Mamba2Model(config), tokens(8)


def _convbert() -> Made:
    return hf.ConvBertModel(hf.ConvBertConfig(**TINY, vocab_size=50, embedding_size=16)), tokens()


def _patchtst() -> Made:
    config = hf.PatchTSTConfig(
        num_input_channels=3, context_length=16, patch_length=4, patch_stride=4, d_model=16, num_attention_heads=2,
        num_hidden_layers=1, ffn_dim=16, prediction_length=4,
    )  # fmt: skip
    return hf.PatchTSTForPrediction(config), torch.randn(2, 16, 3)


SEQUENCES: dict[str, dict[str, Callable[[], Made]]] = {
    "audio": {
        "Wav2Vec2": lambda: (hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SPEECH)), torch.randn(2, 800)),
        "HuBERT": lambda: (hf.HubertForCTC(hf.HubertConfig(**SPEECH)), torch.randn(2, 800)),
        "SEW": _sew,
        "Whisper encoder": _whisper,
        "AST": _ast,
        "SpeechT5 HiFi-GAN": _hifigan,
        "Whisper": _whisper_full,
        "Speech2Text": _speech2text,
        "WavLM": lambda: (hf.WavLMModel(hf.WavLMConfig(**SPEECH)), torch.randn(2, 800)),
        "Data2Vec audio": _data2vec_audio,
        "Wav2Vec2-Conformer": _conformer,
        "Wav2Vec2-BERT": _wav2vec2_bert,
        "Moonshine encoder": _moonshine,
        "UnivNet": _univnet,
        "VITS decoder": _vits,
    },
    "codec": {
        "EnCodec encoder": lambda: (_encodec().encoder, torch.randn(2, 1, 64)),
        "EnCodec decoder": lambda: (_encodec().decoder, torch.randn(2, 8, 16)),
        "DAC encoder": lambda: (_dac().encoder, torch.randn(2, 1, 64)),
        "DAC decoder": lambda: (_dac().decoder, torch.randn(2, 16, 16)),
        "Mimi encoder": lambda: (_mimi().encoder, torch.randn(2, 1, 64)),
        "Mimi decoder": lambda: (_mimi().decoder, torch.randn(2, 16, 16)),
    },
    "video": {"VideoMAE": _videomae, "ViViT": _vivit, "TimeSformer": _timesformer},
    "text": {
        "BERT": _bert,
        "GPT-2": _gpt2,
        "SqueezeBERT": _squeezebert,
        "Mamba": _mamba,
        "Mamba-2": _mamba2,
        "ConvBERT": _convbert,
    },
    "text and image": {"CLIP": _clip, "LayoutLMv3": _layoutlm},
    "time series": {"PatchTST": _patchtst},
}
