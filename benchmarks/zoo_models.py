"""Architectures of transformers with small configurations and random weights: name, kind, module, example inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers as hf

if TYPE_CHECKING:
    from collections.abc import Callable

    Made = tuple[torch.nn.Module, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One architecture.

    Attributes:
        name: As its authors write it.
        kind: What it is for.
        make: Gives the module and its example inputs: a tensor, a tuple, or a dict by argument name.
    """

    name: str
    kind: str
    make: Callable[[], Made]


def image(size: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def tokens(length: int = 7, vocabulary: int = 50) -> torch.Tensor:
    return torch.randint(0, vocabulary, (2, length))


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {**TINY, "image_size": 32, "patch_size": 8}
SPEECH = {
    **TINY, "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "vocab_size": 20, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 4,
}  # fmt: skip
CODEC = {
    "num_filters": 4, "hidden_size": 8, "codebook_size": 16, "codebook_dim": 8, "upsampling_ratios": [2, 2],
    "num_lstm_layers": 1,
}  # fmt: skip


def _resnet(stages: int = 2, **more: Any) -> Any:
    return hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64][:stages], depths=[1] * stages, **more)


def _focalnet() -> Made:
    config = hf.FocalNetConfig(
        image_size=32, patch_size=4, embed_dim=8, hidden_sizes=[8, 16], depths=[1, 1], focal_levels=[1, 1],
        focal_windows=[3, 3],
    )  # fmt: skip
    return hf.FocalNetForImageClassification(config), image()


def _swin() -> Made:
    config = hf.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4)
    return hf.SwinForImageClassification(config), image()


def _swinv2() -> Made:
    config = hf.Swinv2Config(image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4)
    return hf.Swinv2ForImageClassification(config), image()


def _cvt() -> Made:
    config = hf.CvtConfig(embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 2, 3])
    return hf.CvtForImageClassification(config), image()


def _pvt() -> Made:
    config = hf.PvtConfig(
        image_size=64, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 2]
    )
    return hf.PvtForImageClassification(config), image(64)


def _pvt_v2() -> Made:
    config = hf.PvtV2Config(
        image_size=64, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 2]
    )
    return hf.PvtV2ForImageClassification(config), image(64)


def _levit() -> Made:
    config = hf.LevitConfig(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]
    )
    return hf.LevitForImageClassification(config), image(64)


def _mobilevit() -> Made:
    config = hf.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 40], num_attention_heads=2
    )
    return hf.MobileViTForImageClassification(config), image(64)


def _hiera() -> Made:
    config = hf.HieraConfig(image_size=[32, 32], embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 4], num_query_pool=2)
    return hf.HieraForImageClassification(config), image()


def _segformer() -> Made:
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16
    )
    return hf.SegformerForSemanticSegmentation(config), image(64)


def _upernet() -> Made:
    backbone = hf.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, auxiliary_in_channels=24
    )
    return hf.UperNetForSemanticSegmentation(config), image(64)


def _maskformer() -> Made:
    backbone = _resnet(4, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = hf.MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=backbone, decoder_config=hf.DetrConfig(**DETR)
    )
    return hf.MaskFormerForInstanceSegmentation(config), image(64)


def _mobilevit_v2() -> Made:
    config = hf.MobileViTV2Config(image_size=64, width_multiplier=0.25, n_attn_blocks=[1, 1, 1])
    return hf.MobileViTV2ForSemanticSegmentation(config), image(64)


def _dpt() -> Made:
    config = hf.DPTConfig(
        **{**PATCHES, "num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    return hf.DPTForDepthEstimation(config), image()


def _glpn() -> Made:
    config = hf.GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    return hf.GLPNForDepthEstimation(config), image(64)


def _depth_anything() -> Made:
    backbone = hf.Dinov2Config(
        **{**PATCHES, "num_hidden_layers": 4}, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )  # fmt: skip
    config = hf.DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    return hf.DepthAnythingForDepthEstimation(config), image()


def _detr() -> Made:
    config = hf.DetrConfig(use_timm_backbone=False, backbone_config=_resnet(out_features=["stage2"]), **DETR)
    return hf.DetrForObjectDetection(config), image(64)


def _rt_detr() -> Made:
    backbone = hf.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[24, 32, 40], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=5, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, decoder_n_points=2, num_denoising=0,
    )  # fmt: skip
    return hf.RTDetrForObjectDetection(config), image(64)


def _yolos() -> Made:
    config = hf.YolosConfig(**{**TINY, "image_size": [32, 32]}, patch_size=8, num_detection_tokens=4)
    return hf.YolosForObjectDetection(config), image()


def _superpoint() -> Made:
    config = hf.SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, keypoint_decoder_dim=65, descriptor_decoder_dim=16
    )
    return hf.models.superpoint.modeling_superpoint.SuperPointEncoder(config), torch.randn(2, 1, 32, 32)


def _vitmatte() -> Made:
    backbone = hf.VitDetConfig(
        **{**PATCHES, "patch_size": 16},
        num_channels=4,
        out_features=["stage1"],
        window_size=0,
        residual_block_indices=[0],
    )
    config = hf.VitMatteConfig(
        backbone_config=backbone, hidden_size=16, convstream_hidden_sizes=[8, 8, 8], fusion_hidden_sizes=[16, 8, 8, 8]
    )
    return hf.VitMatteForImageMatting(config), torch.randn(2, 4, 32, 32)


def _swin2sr() -> Made:
    config = hf.Swin2SRConfig(image_size=16, embed_dim=8, depths=[1], num_heads=[2], window_size=4, upscale=2)
    return hf.Swin2SRForImageSuperResolution(config), image(16)


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


ZOO = tuple(
    Entry(name=name, kind=kind, make=make)
    for kind, entries in {
        "vision": {
            "ResNet": lambda: (hf.ResNetForImageClassification(_resnet()), image()),
            "RegNet": lambda: (
                hf.RegNetForImageClassification(
                    hf.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8)
                ),
                image(),
            ),
            "BiT": lambda: (
                hf.BitForImageClassification(
                    hf.BitConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], num_groups=4)
                ),
                image(64),
            ),
            "MobileNetV1": lambda: (
                hf.MobileNetV1ForImageClassification(hf.MobileNetV1Config(depth_multiplier=0.25)),
                image(64),
            ),
            "MobileNetV2": lambda: (
                hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(depth_multiplier=0.35)),
                image(64),
            ),
            "EfficientNet": lambda: (
                hf.EfficientNetForImageClassification(
                    hf.EfficientNetConfig(image_size=64, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320)
                ),
                image(64),
            ),
            "ConvNeXt": lambda: (
                hf.ConvNextForImageClassification(hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
                image(),
            ),
            "ConvNeXt V2": lambda: (
                hf.ConvNextV2ForImageClassification(
                    hf.ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
                ),
                image(),
            ),
            "PoolFormer": lambda: (
                hf.PoolFormerForImageClassification(
                    hf.PoolFormerConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16])
                ),
                image(64),
            ),
            "FocalNet": _focalnet,
            "LeViT": _levit,
            "MobileViT": _mobilevit,
            "CvT": _cvt,
            "PVT": _pvt,
            "PVT v2": _pvt_v2,
            "Swin": _swin,
            "Swin V2": _swinv2,
            "Hiera": _hiera,
            "ViT": lambda: (hf.ViTForImageClassification(hf.ViTConfig(**PATCHES)), image()),
            "DINOv2": lambda: (hf.Dinov2ForImageClassification(hf.Dinov2Config(**PATCHES)), image()),
        },
        "segmentation": {
            "SegFormer": _segformer,
            "UperNet": _upernet,
            "MaskFormer": _maskformer,
            "MobileViTV2": _mobilevit_v2,
            "ViTMatte": _vitmatte,
        },
        "depth": {"DPT": _dpt, "GLPN": _glpn, "Depth Anything": _depth_anything},
        "detection": {"DETR": _detr, "RT-DETR": _rt_detr, "YOLOS": _yolos, "SuperPoint encoder": _superpoint},
        "super-resolution": {"Swin2SR": _swin2sr},
        "audio": {
            "Wav2Vec2": lambda: (hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SPEECH)), torch.randn(2, 800)),
            "HuBERT": lambda: (hf.HubertForCTC(hf.HubertConfig(**SPEECH)), torch.randn(2, 800)),
            "SEW": _sew,
            "Whisper encoder": _whisper,
            "AST": _ast,
            "SpeechT5 HiFi-GAN": _hifigan,
        },
        "codec": {
            "EnCodec encoder": lambda: (_encodec().encoder, torch.randn(2, 1, 64)),
            "EnCodec decoder": lambda: (_encodec().decoder, torch.randn(2, 8, 16)),
            "DAC encoder": lambda: (_dac().encoder, torch.randn(2, 1, 64)),
            "DAC decoder": lambda: (_dac().decoder, torch.randn(2, 16, 16)),
        },
        "video": {"VideoMAE": _videomae, "ViViT": _vivit},
        "text": {"BERT": _bert, "GPT-2": _gpt2, "SqueezeBERT": _squeezebert, "Mamba": _mamba},
        "text and image": {"CLIP": _clip},
    }.items()
    for name, make in entries.items()
)
