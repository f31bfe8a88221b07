"""Architectures of the zoo that look at images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers as hf
from zoo_entry import DETR, PATCHES, TINY, image, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo_entry import Made


STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
PYRAMID = {
    "image_size": 64, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 2]
}  # fmt: skip
ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]


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
    config = hf.PvtConfig(**PYRAMID)
    return hf.PvtForImageClassification(config), image(64)


def _pvt_v2() -> Made:
    config = hf.PvtV2Config(**PYRAMID)
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
    config = hf.SegformerConfig(**STAGES, decoder_hidden_size=16)
    return hf.SegformerForSemanticSegmentation(config), image(64)


def _upernet() -> Made:
    backbone = hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=ALL_STAGES)
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, auxiliary_in_channels=24
    )
    return hf.UperNetForSemanticSegmentation(config), image(64)


def _maskformer() -> Made:
    backbone = _resnet(4, out_features=ALL_STAGES)
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
    config = hf.GLPNConfig(**STAGES, decoder_hidden_size=8)
    return hf.GLPNForDepthEstimation(config), image(64)


def _depth_anything() -> Made:
    backbone = hf.Dinov2Config(
        **{**PATCHES, "num_hidden_layers": 4}, out_features=ALL_STAGES,
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


def _swiftformer() -> Made:
    config = hf.SwiftFormerConfig(image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 16, 16, 24], mlp_ratio=2)
    return hf.SwiftFormerForImageClassification(config), image(64)


def _dinov3() -> Made:
    config = hf.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1])
    return hf.DINOv3ConvNextModel(config), image(64)


def _hgnet() -> Made:
    config = hf.HGNetV2Config(
        embedding_size=8, depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 16, 16], stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 16, 16], stage_mid_channels=[8, 8, 8, 8], stage_out_channels=[16, 16, 16, 16],
        stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[2, 2, 2, 2],
    )  # fmt: skip
    return hf.HGNetV2ForImageClassification(config), image(64)


def _perceiver() -> Made:
    config = hf.PerceiverConfig(
        num_latents=4, d_latents=16, d_model=16, num_blocks=1, num_self_attends_per_block=1,
        num_self_attention_heads=2, num_cross_attention_heads=1, num_labels=3,
    )  # fmt: skip
    return hf.PerceiverForImageClassificationConvProcessing(config), image(64)


def _mask2former() -> Made:
    backbone = hf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=2,
        out_features=ALL_STAGES,
    )  # fmt: skip
    config = hf.Mask2FormerConfig(
        backbone_config=backbone, hidden_dim=32, mask_feature_size=32, feature_size=32, num_attention_heads=2,
        encoder_layers=1, decoder_layers=2, dim_feedforward=32, encoder_feedforward_dim=32, num_queries=4,
    )  # fmt: skip
    return hf.Mask2FormerForUniversalSegmentation(config), image(64)


def _sam() -> Made:
    vision = {
        "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "window_size": 2, "global_attn_indexes": [0], "mlp_dim": 32, "num_pos_feats": 4,
    }  # fmt: skip
    prompt = {"hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    mask = {
        "hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 8,
        "iou_head_depth": 2,
    }  # fmt: skip
    config = hf.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    return hf.SamModel(config), {"pixel_values": image(), "input_points": torch.rand(2, 1, 2, 2) * 32}


def _clipseg() -> Made:
    text = {**TINY, "vocab_size": 50, "max_position_embeddings": 7, "eos_token_id": 49}
    config = hf.CLIPSegConfig(
        text_config=text, vision_config=PATCHES, projection_dim=16, extract_layers=[0], reduce_dim=8,
        decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    return hf.CLIPSegForImageSegmentation(config), {"input_ids": tokens(), "pixel_values": image()}


def _zoedepth() -> Made:
    backbone = hf.BeitConfig(**PATCHES, out_indices=[1], reshape_hidden_states=False)
    config = hf.ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8], fusion_hidden_size=8, bottleneck_features=8,
        reassemble_factors=[4], num_relative_features=8,
    )  # fmt: skip
    return hf.ZoeDepthForDepthEstimation(config), image()


def _conditional_detr() -> Made:
    config = hf.ConditionalDetrConfig(
        use_timm_backbone=False, backbone_config=_resnet(4, out_features=["stage4"]), **DETR
    )
    return hf.ConditionalDetrForObjectDetection(config), image(64)


def _table_transformer() -> Made:
    config = hf.TableTransformerConfig(
        use_timm_backbone=False, backbone_config=_resnet(4, out_features=["stage4"]), **DETR
    )
    return hf.TableTransformerForObjectDetection(config), image(64)


def _owl_vit() -> Made:
    text = {**TINY, "vocab_size": 50, "max_position_embeddings": 7}
    config = hf.OwlViTConfig(text_config=text, vision_config=PATCHES, projection_dim=16)
    return hf.OwlViTForObjectDetection(config), {"input_ids": tokens(), "pixel_values": image()}


def _vitpose() -> Made:
    backbone = hf.VitPoseBackboneConfig(
        image_size=[32, 32], patch_size=[8, 8], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        mlp_ratio=2, out_features=["stage1"],
    )  # fmt: skip
    return hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=backbone, num_labels=5)), image()


IMAGES: dict[str, dict[str, Callable[[], Made]]] = {
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
            hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
            image(),
        ),
        "PoolFormer": lambda: (
            hf.PoolFormerForImageClassification(hf.PoolFormerConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16])),
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
        "DINOv3 ConvNeXt": _dinov3,
        "BEiT": lambda: (hf.BeitForImageClassification(hf.BeitConfig(**PATCHES)), image()),
        "I-JEPA": lambda: (hf.IJepaModel(hf.IJepaConfig(**PATCHES)), image()),
        "ViTMAE": lambda: (
            hf.ViTMAEModel(hf.ViTMAEConfig(**PATCHES)),
            {"pixel_values": image(), "noise": torch.rand(2, 16)},
        ),
        "SigLIP": lambda: (hf.SiglipVisionModel(hf.SiglipVisionConfig(**PATCHES)), image()),
        "SwiftFormer": _swiftformer,
        "HGNetV2": _hgnet,
        "TextNet": lambda: (hf.TextNetForImageClassification(hf.TextNetConfig()), image(64)),
        "Perceiver": _perceiver,
    },
    "segmentation": {
        "SegFormer": _segformer,
        "UperNet": _upernet,
        "MaskFormer": _maskformer,
        "MobileViTV2": _mobilevit_v2,
        "ViTMatte": _vitmatte,
        "Mask2Former": _mask2former,
        "CLIPSeg": _clipseg,
        "SAM": _sam,
    },
    "depth": {"DPT": _dpt, "GLPN": _glpn, "Depth Anything": _depth_anything, "ZoeDepth": _zoedepth},
    "detection": {
        "DETR": _detr,
        "RT-DETR": _rt_detr,
        "YOLOS": _yolos,
        "SuperPoint encoder": _superpoint,
        "Conditional DETR": _conditional_detr,
        "Table Transformer": _table_transformer,
        "OWL-ViT": _owl_vit,
        "ViTPose": _vitpose,
    },
    "super-resolution": {"Swin2SR": _swin2sr},
}
