// The copy of the file, on ONNX Runtime's WebAssembly: one thread, which needs no headers from the server.

import * as ort from "./runtime/ort.wasm.min.mjs";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array,
  int16: Int16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
};

const volume = (shape) => shape.reduce((product, size) => product * size, 1);

export class Engine {
  constructor(lab, session, content) {
    this.lab = lab;
    this.session = session;
    this.content = content;
  }

  static async open(lab, told) {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.proxy = false;
    const folder = new URL(`${lab.runtime.folder}/`, document.baseURI);
    ort.env.wasm.wasmPaths = {
      mjs: new URL("ort-wasm-simd-threaded.mjs", folder).href,
      wasm: new URL("ort-wasm-simd-threaded.wasm", folder).href,
    };
    told("loading the samples");
    const content = await load(lab.data);
    told("loading the model");
    const model = await load(lab.model.file);
    const session = await ort.InferenceSession.create(new Uint8Array(model), {
      executionProviders: ["wasm"], graphOptimizationLevel: "all", logSeverityLevel: 3, // errors alone
    });
    return new Engine(lab, session, content);
  }

  // A stored array of one sample: {data, shape}.
  stored({ dtype, shape, offset }, sample) {
    const made = ARRAYS[dtype], number = volume(shape);
    return { shape, data: new made(this.content, offset + sample * number * made.BYTES_PER_ELEMENT, number) };
  }

  #inputs(sample) {
    const feeds = Object.create(null); // an input may be called like something that objects have
    for (const input of this.lab.inputs) {
      const { data, shape } = this.stored(input, sample);
      feeds[input.name] = new ort.Tensor(input.dtype, data.slice(), [1, ...shape]);
    }
    return feeds;
  }

  // Run with what the state says, and return the outputs by name, as a Map, with the milliseconds that it took.
  run(state) {
    return this.#run(state.sample, (layer, i) => ({
      off: state.off[i], gate: state.gates[i], delta: state.delta[i], original: state.original[i],
    }));
  }

  // Run with all components on, the gates off, or the original layers where the file has them.
  reference(sample) {
    const original = this.lab.dense.is_routed;
    return this.#run(sample, () => ({ off: new Set(), gate: -Infinity, delta: true, original }));
  }

  async #run(sample, chosen) {
    const feeds = this.#inputs(sample);
    this.lab.layers.forEach((layer, i) => {
      const { off, gate, delta, original } = chosen(layer, i);
      const fill = (one, value) => {
        if (one) feeds[one.input] = new ort.Tensor("float32", new Float32Array(volume(one.shape)).fill(value), one.shape);
      };
      fill(layer.mask, 1);
      fill(layer.delta, delta ? 1 : 0);
      fill(layer.routing, original ? 0 : 1);
      if (layer.threshold) feeds[layer.threshold.input] = new ort.Tensor("float32", [gate ?? NaN], [1]);
      if (layer.mask) {
        const data = feeds[layer.mask.input].data;
        for (const index of off) for (let at = index; at < data.length; at += layer.components) data[at] = 0;
      }
    });
    const start = performance.now();
    const results = await this.session.run(feeds);
    const milliseconds = performance.now() - start;
    const outputs = new Map(Object.entries(results).map(([name, tensor]) => [name, { data: tensor.data, shape: tensor.dims }]));
    return { outputs, milliseconds };
  }
}

export async function load(name) {
  const answer = await fetch(new URL(name, document.baseURI));
  if (!answer.ok) throw new Error(`${name} cannot be loaded: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}
