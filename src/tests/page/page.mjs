// The status page in Chromium, while a group is saturated: `make page-test`.
//
// Arguments: the gateway's binary, the folder with node_modules/playwright-core, the folder for
// screenshots. Fails with what it saw; the screenshots show it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

const [binary, tools, shots] = process.argv.slice(2).map(path => resolve(path));
const { chromium } = createRequire(join(tools, "package.json"))("playwright-core");
mkdirSync(shots, { recursive: true });

const HOSTILE = "@TGS#<img src=x onerror=\"window.hit=1\">&lt;b>\u202e";
const LARGE = "9007199254740993"; // 2^53 + 1

// The upstream: OK after 30 ms; one group is refused over quota, once.
let refusals = 0;
const upstream = createServer((incoming, answer) => {
  let body = "";
  incoming.on("data", data => body += data);
  incoming.on("end", () => setTimeout(() => {
    const refused = body.includes("refused-group") && refusals++ === 0;
    answer.end(JSON.stringify({ ActionStatus: refused ? "FAIL" : "OK", ErrorInfo: "", ErrorCode: refused ? 10049 : 0 }));
  }, 30));
});
await new Promise(ready => upstream.listen(0, "127.0.0.1", ready));

const folder = mkdtempSync(join(tmpdir(), "page-"));
const settings = join(folder, "gateway.toml");
writeFileSync(settings, `[listen]
traffic = "127.0.0.1:0"
admin = "127.0.0.1:0"
[upstream]
url = "http://127.0.0.1:${upstream.address().port}"
[state]
hold = "0s"
[queue]
deadline = "120s"
[log]
format = "json"
`);
const gateway = spawn(binary, ["serve", "--config", settings], { stdio: ["ignore", "ignore", "pipe"], env: {} });
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
let calling = true;
try {
  const { traffic, admin } = await addresses(gateway);
  await calls(traffic);
  await saturated(admin);
  await check(admin, traffic);
  console.log("the page shows what it should; screenshots are in " + shots);
} finally {
  calling = false;
  await browser.close();
  gateway.kill("SIGKILL");
  upstream.closeAllConnections();
  upstream.close();
  rmSync(folder, { recursive: true });
}

async function addresses(process) {
  for await (const line of createInterface({ input: process.stderr })) {
    const said = JSON.parse(line);
    if (said.message === "chat-gateway is ready") {
      process.stderr.resume();
      return said;
    }
  }
  throw new Error("the gateway ended");
}

function call(traffic, path, body, headers = {}) {
  const [host, port] = traffic.split(":");
  const target = `${path}?sdkappid=88888888&identifier=admin&usersig=SECRETSIGNATURE&random=1&contenttype=json`;
  return new Promise(done => {
    const out = request({ host, port, path: target, method: "POST", headers }, answer => {
      answer.resume();
      answer.on("end", done);
    });
    out.on("error", done);
    out.end(typeof body === "string" ? body : JSON.stringify(body));
  });
}

// Writers who repeat at once: two busy groups, one of them with calls that travel alone, a message,
// and one group that is refused over its quota.
async function calls(traffic) {
  const write = group => ({ GroupId: group, GroupAttr: [{ key: "seat" + Math.floor(Math.random() * 8), value: "v" }] });
  const set = "/v4/group_open_http_svc/modify_group_attr";
  const extend = "/v4/openim_msg_ext_http_svc/group_set_key_values";
  const repeat = (count, once) => {
    for (let n = 0; n < count; n++) (async () => { while (calling) await once(); })();
  };
  repeat(24, () => call(traffic, set, write(HOSTILE), { "x-chat-gateway-merge": "off" }));
  repeat(80, () => call(traffic, set, write("@TGS#lobby")));
  repeat(6, () => call(traffic, set, write("@TGS#room-7")));
  // A number over 2^53 has to be written by hand. More than its window takes, and with time.
  const message = `{"GroupId":"@TGS#lobby","MsgSeq":${LARGE},"OperateType":3}`;
  const alone = { "x-chat-gateway-merge": "off" };
  for (let n = 0; n < 215; n++) call(traffic, extend, message, alone);
}

async function status(admin) {
  return (await fetch(`http://${admin}/status.json`)).json();
}
async function saturated(admin) {
  for (let tries = 0; tries < 100; tries++) {
    const { keys, quota_refusals } = await status(admin);
    if (quota_refusals === 0 && keys.some(key => key.group === HOSTILE && key.queue_calls > 10) && keys.some(key => key.msg_seq === LARGE)) return;
    await new Promise(wait => setTimeout(wait, 100));
  }
  throw new Error("no group became busy: " + JSON.stringify(await status(admin)));
}

async function check(admin, traffic) {
  const origin = `http://${admin}`;
  const context = await browser.newContext({ colorScheme: "light", viewport: { width: 1280, height: 1000 }, locale: "en" });
  const page = await context.newPage();
  const errors = [], elsewhere = [];
  page.on("pageerror", error => errors.push(String(error)));
  page.on("console", message => message.type() === "error" && errors.push(message.text()));
  page.on("request", sent => new URL(sent.url()).origin === origin || sent.url().startsWith("data:") || elsewhere.push(sent.url()));

  await page.goto(origin);
  const refused = page.getByRole("region", { name: "Refused over quota by the upstream" });
  await refused.getByText("0", { exact: true }).waitFor();
  assert.match(await refused.getAttribute("class"), /\bgood\b/);

  // The busy group, by its name as text, with a bar for each slot.
  const row = page.getByRole("row").filter({ hasText: HOSTILE });
  await row.waitFor();
  assert.equal(await page.evaluate(() => window.hit), undefined, "an id was taken for markup");
  assert.equal(await page.locator("main img, main b:has-text('<')").count(), 0);
  assert.equal(await row.locator(".slots i").count(), 5);
  assert.match(await row.innerText(), /\d+ calls?/);
  assert.match(await row.innerText(), /(in \d+|now|not known yet)/);
  assert.match(await row.innerText(), /at the upstream, \d used, \d free of [45]/);
  await page.getByText("message " + LARGE).first().waitFor();

  // Everything else that an operator looks for.
  for (const text of ["takes calls", "own windows", "upstream answers in", "Merged", "exact", "Last events", "log level info"])
    await page.getByText(text, { exact: false }).first().waitFor();
  await page.getByRole("listitem").filter({ hasText: "chat-gateway is ready" }).waitFor();
  await page.waitForFunction(() => /^\d/.test(document.getElementById("calls").textContent) && parseFloat(document.getElementById("calls").textContent) > 0);
  await page.waitForFunction(() => document.querySelectorAll("#chart path.line").length === 2);

  // By keyboard: to the figures, the key, its explanation.
  await page.evaluate(() => document.activeElement?.blur());
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the figures");
  const reached = new Set();
  for (let n = 0; n < 30; n++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.name || document.activeElement.id || document.activeElement.textContent));
  }
  for (const stop of [HOSTILE, "events", "sdkappid", "group", "Explain", "metrics"]) assert.ok(reached.has(stop), `Tab does not reach ${stop}: ${[...reached]}`);

  // For ears: regions, tables and fields have names.
  for (const name of ["Hottest keys", "Quotas in force", "Last events", "Why does a key wait?"]) assert.equal(await page.getByRole("region", { name }).count(), 1, name);
  assert.equal(await page.getByRole("columnheader", { name: "Next slot" }).count(), 1);
  assert.equal(await page.getByRole("textbox", { name: "Group id" }).count(), 1);

  await page.evaluate(() => document.activeElement.blur());
  await page.waitForTimeout(12_000); // some history for the chart
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await contrast(page, colorScheme);
    await page.screenshot({ path: join(shots, `${colorScheme}.png`), fullPage: true });
  }
  await page.setViewportSize({ width: 390, height: 844 });
  await page.waitForTimeout(1_200);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  await page.screenshot({ path: join(shots, "phone.png"), fullPage: true });
  assert.equal(wide, 0, "a phone has to scroll sideways");
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: "light" });

  // A refusal is shown as large as its absence, and said among the events by a hash.
  await call(traffic, "/v4/group_open_http_svc/modify_group_attr", { GroupId: "refused-group", GroupAttr: [{ key: "k", value: "v" }] });
  await refused.getByText("1", { exact: true }).waitFor();
  assert.match(await refused.getAttribute("class"), /\bbad\b/);
  await page.getByRole("listitem").filter({ hasText: "the upstream refused a call over quota" }).waitFor();
  const events = await page.getByRole("list", { name: "Last events" }).innerText();
  assert.match(events, /key=[0-9a-f]{12}/);
  for (const secret of [HOSTILE, "refused-group", "SECRETSIGNATURE"]) assert.ok(!events.includes(secret), events);
  await page.screenshot({ path: join(shots, "refused.png"), fullPage: true });

  // The explanation, from the key's own link.
  await page.getByRole("link", { name: HOSTILE }).click();
  await page.getByText(/All \d slots of the window are spent|call(s are| is) at the upstream/).waitFor();
  await page.getByText("In logs and traces").waitFor();
  assert.match(await page.getByRole("region", { name: "The key" }).innerText(), /[0-9a-f]{12}/);
  assert.ok((await page.getByRole("region", { name: "The key" }).innerText()).includes(HOSTILE));
  assert.equal(await page.getByRole("textbox", { name: "Group id" }).inputValue(), HOSTILE);
  await page.screenshot({ path: join(shots, "explain.png"), fullPage: true });
  // The same for tools, and what a mistake looks like.
  const json = await (await fetch(page.url())).json();
  assert.equal(json.group, HOSTILE);
  await page.goto(`${origin}/explain?sdkappid=x&group=<b>`);
  await page.getByText("Sdkappid is missing or not a number").or(page.getByText("sdkappid is missing or not a number")).waitFor();

  assert.deepEqual(errors.filter(error => !error.includes("400 (Bad Request)")), []);
  assert.deepEqual(elsewhere, [], "the page asks somebody else");

  // Nobody is left to answer.
  await page.goto(origin);
  await row.waitFor();
  gateway.kill("SIGKILL");
  await page.getByRole("alert").getByText("does not answer any more").waitFor();
}

// WCAG 2.2, 1.4.3: 4.5 to 1 for text, on whatever is behind it.
async function contrast(page, scheme) {
  const poor = await page.evaluate(() => {
    const rgb = text => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
      .reduce((sum, c, index) => sum + c * [.2126, .7152, .0722][index], 0);
    const found = [];
    for (const node of document.querySelectorAll("body *")) {
      const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
      if (!own || !node.checkVisibility() || node.closest("svg, script, noscript, .skip")) continue;
      let behind = node;
      while (behind && (rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
      const [one, other] = [getComputedStyle(node).color, getComputedStyle(behind ?? document.body).backgroundColor].map(rgb).map(light);
      const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
      if (ratio < 4.5) found.push(`${node.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
      found.seen = (found.seen ?? 0) + 1;
    }
    return { found: [...new Set(found)], seen: found.seen };
  });
  assert.ok(poor.seen > 40, `looked at ${poor.seen} texts only`);
  assert.deepEqual(poor.found, [], `too little contrast (${scheme})`);
}
