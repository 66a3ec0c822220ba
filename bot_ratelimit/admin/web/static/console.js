// The pages work without this script. With it, elements with `data-live` are kept up to date, and
// times are shown in the reader's time zone.
"use strict";

const REFRESH_INTERVAL = 2000; // ms from an answer to the next refresh
const SILENCE = 10000; // ms without an answer, after which the page is not live

// --- times ------------------------------------------------------------------------------------

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const pad = (number) => String(number).padStart(2, "0");

function localize(root) {
  for (const each of root.querySelectorAll("time[data-shows]")) {
    const at = new Date(each.dateTime);
    const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}`;
    const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
    each.textContent = each.dataset.shows === "hour" ? clock : `${day} ${clock}`;
    if (each.dataset.shows === "second") each.textContent += `:${pad(at.getSeconds())}`;
  }
  for (const each of root.querySelectorAll("[data-zone]")) each.textContent = zone;
}

// --- live updates ----------------------------------------------------------------------------

// Makes `old` equal to `fresh`, and touches only what differs. So the focus, the selection and open
// <details> are kept, and bars of the chart grow from their present height.
function become(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  after.forEach((node, i) => (i < before.length ? become(before[i], node) : old.append(node)));
  before.slice(after.length).forEach((node) => node.remove());
}

// Loads the page again, and returns whether that worked. Without #liveness it is the login page: the
// session has ended.
async function refresh() {
  const answer = await fetch(location.href, { signal: AbortSignal.timeout(SILENCE) });
  if (answer.status >= 500) return false;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!page.getElementById("liveness")) {
    location.reload();
    return false;
  }
  localize(page);
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh) become(old, fresh);
  }
  return true;
}

// Says in `sign` whether the page is live, and loads it again and again while somebody looks at it.
function follow(sign) {
  let seen = new Date();
  const say = (on) => {
    if (on) seen = new Date();
    const words = on ? sign.dataset.on : `${sign.dataset.off} ${seen.toLocaleTimeString()}`;
    document.body.classList.toggle("stale", !on);
    sign.hidden = false;
    sign.classList.toggle("on", on);
    if (sign.textContent !== words) sign.textContent = words;
  };
  const look = async () => {
    if (!document.hidden) say(await refresh().catch(() => false));
    setTimeout(look, REFRESH_INTERVAL);
  };
  setTimeout(look, REFRESH_INTERVAL);
}

// --- inside Telegram --------------------------------------------------------------------------

// Telegram passes initData, which proves who the user is, in the URL fragment; no script of Telegram
// is needed.
function enter(form) {
  const proof = new URLSearchParams(location.hash.slice(1)).get("tgWebAppData");
  if (!proof) return;
  history.replaceState(null, "", location.pathname + location.search);
  if (form.dataset.by === `${userOf(proof)}@web`) return; // this user is logged in already
  form.elements.init_data.value = proof;
  form.hidden = false;
  form.submit();
}

function userOf(proof) {
  try {
    return JSON.parse(new URLSearchParams(proof).get("user")).id;
  } catch {
    return undefined;
  }
}

// ----------------------------------------------------------------------------------------------

// The very first change takes a few seconds. Meanwhile the same form is not sent a second time.
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
});
addEventListener("pageshow", () => {
  for (const sent of document.querySelectorAll("[data-sent]")) delete sent.dataset.sent;
});

// What was done must not be done again by a reload: that shows what the page links to.
const next = document.getElementById("next");
if (next) history.replaceState(null, "", next.href);

localize(document);
const form = document.getElementById("telegram");
if (form) enter(form);
const sign = document.getElementById("liveness");
if (sign && document.querySelector("[data-live]")) follow(sign);
