// Sends one request with nekoai-js, whose folder of packages the environment variable names.
const fs = require("fs");
const path = require("path");
const packages = path.join(process.env.NAIAD_CLIENT_NEKOAI_JS, "node_modules");
const nekoai = require(path.join(packages, "nekoai-js"));
const jszip = require(path.join(packages, "jszip"));

const [address, token, operation, folder, requestText] = process.argv.slice(2);
const { quality, ...request } = JSON.parse(requestText);
const client = new nekoai.NovelAI({ token, host: address, timeout: 240000, retry: { enabled: false } });
const images = {};
for (const name of ["image", "mask"]) {
  if (request[name]) images[name] = fs.readFileSync(request[name]).toString("base64");
}

function save(contents, result = {}) {
  contents.forEach((content, number) => fs.writeFileSync(path.join(folder, `${number}.png`), content));
  return { images: contents.length, ...result };
}

async function generate(action, model) {
  const metadata = { ...request, ...images, qualityToggle: quality, action, model };
  return save((await client.generateImage(metadata)).map((image) => image.data));
}

// The client requests only V4 and V4.5 models as a stream.
async function stream() {
  const metadata = { ...request, qualityToggle: quality, action: "generate", model: nekoai.Model.V4_5 };
  const finals = [];
  let previews = 0;
  for await (const event of await client.generateImage(metadata, true)) {
    if (event.event_type === "final") finals.push(event.image.data);
    else previews += 1;
  }
  return save(finals, { previews });
}

// `lineArt` itself needs the package canvas to read the image's size. The client reads the response twice, finds
// nothing the second time, and returns the ZIP as the image.
async function director() {
  const { width, height } = request;
  const result = await client.useDirectorTool({ req_type: "lineart", width, height, image: images.image });
  const files = Object.values((await jszip.loadAsync(result.data)).files);
  return save(await Promise.all(files.map((file) => file.async("uint8array"))));
}

const operations = {
  generate: () => generate("generate", nekoai.Model.V3),
  img2img: () => generate("img2img", nekoai.Model.V3),
  infill: () => generate("infill", nekoai.Model.V3_INP),
  stream,
  director,
};

operations[operation]()
  .catch((error) => ({ error: `${error.name} ${error.status} ${error.message}` }))
  .then((result) => console.log(JSON.stringify(result)));
