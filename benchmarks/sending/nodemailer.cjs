// Measure Nodemailer's pool as senders.py measures the other senders.
const fs = require("node:fs");
const { performance } = require("node:perf_hooks");
const { createRequire } = require("node:module");
const { parseArgs } = require("node:util");

const { values } = parseArgs({
  options: {
    modules: { type: "string" }, // the directory whose node_modules has Nodemailer
    port: { type: "string" },
    content: { type: "string" },
    concurrency: { type: "string", default: "1" },
    seconds: { type: "string", default: "1" },
    warm: { type: "string", default: "0.3" },
    messages: { type: "string" },
    recipients: { type: "string", default: "1" },
  },
});
const load = createRequire(`${values.modules}/`);
const nodemailer = load("nodemailer");
const concurrency = Number(values.concurrency);
const limit = values.messages === undefined ? null : Number(values.messages);
const to =
  values.recipients === "1"
    ? "customer@example.com"
    : Array.from({ length: Number(values.recipients) }, (_, n) => `customer${n}@example.com`);
const content = JSON.parse(fs.readFileSync(values.content, "utf-8"));
const attachment = content.attachment === null ? null : fs.readFileSync(content.attachment);
const transport = nodemailer.createTransport({
  host: "127.0.0.1",
  port: Number(values.port),
  pool: true,
  maxConnections: concurrency,
  secure: false,
  ignoreTLS: true,
});

let render = null;
if (content.template) {
  const path = require("node:path");
  const engine = load("nunjucks").configure(path.dirname(content.template), { autoescape: true });
  const template = engine.getTemplate(path.basename(content.template), true);
  render = (n) =>
    template.render({ number: n, name: `Zoë ${n}`, points: (7 * Number(n)) % 500, articles: content.articles });
  transport.use("compile", load("nodemailer-html-to-text").htmlToText());
}

let number = 0;
let sent = 0;

function send() {
  const n = String(number++);
  const fill = (text) => text.replaceAll("{n}", n);
  const message = {
    from: content.sender,
    to,
    subject: fill(content.subject),
    ...(render === null ? { text: fill(content.text), html: fill(content.html) } : { html: render(n) }),
  };
  if (n !== "0" && attachment !== null) {
    message.attachments = [{ filename: "photos.zip", content: attachment, contentType: "application/zip" }];
  }
  return transport.sendMail(message);
}

async function phase(seconds, count) {
  const end = performance.now() + seconds * 1000;
  let left = count;
  const more = () => (limit === null ? performance.now() < end : left-- > 0);
  const work = async () => {
    while (more()) {
      await send();
      sent++;
    }
  };
  await Promise.all(Array.from({ length: concurrency }, work));
}

function status(field) {
  const line = fs.readFileSync("/proc/self/status", "utf-8").match(new RegExp(`^${field}:\\s+(\\d+)`, "m"));
  return Number(line[1]) / 1024;
}

async function main() {
  await phase(Number(values.warm), 1);
  fs.writeFileSync("/proc/self/clear_refs", "5");
  const memory = status("VmRSS");
  const before = { sent, cpu: process.cpuUsage(), at: performance.now() };
  await phase(Number(values.seconds), limit);
  const seconds = (performance.now() - before.at) / 1000;
  const cpu = process.cpuUsage(before.cpu);
  const messages = sent - before.sent;
  transport.close();
  console.log(
    JSON.stringify({
      sent,
      messages,
      seconds,
      rate: messages / seconds,
      cpu_per_1000: (cpu.user + cpu.system) / 1e6 / messages * 1000,
      peak_mb: status("VmHWM"),
      peak_growth_mb: status("VmHWM") - memory,
    }),
  );
}

main();
