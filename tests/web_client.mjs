// Drives the npm package `ai` against examples/web.py, as `useChat` does it: the class `AbstractChat`, of which the hook
// is a shell, and `DefaultChatTransport`. Reads commands as lines of JSON, and writes what comes of them.
//
//   node web_client.mjs MODULE API COOKIE
import { createInterface } from "node:readline";

const [module, api, cookie] = process.argv.slice(2);
const { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } = await import(module);

const tell = (what) => process.stdout.write(JSON.stringify(what) + "\n");

// As @ai-sdk/react has it, without React.
class State {
  status = "ready";
  error = undefined;
  messages = [];
  constructor(name, messages) {
    this.name = name;
    this.messages = messages;
  }
  pushMessage = (message) => this.set([...this.messages, message]);
  popMessage = () => this.set(this.messages.slice(0, -1));
  replaceMessage = (index, message) =>
    this.set([...this.messages.slice(0, index), this.snapshot(message), ...this.messages.slice(index + 1)]);
  snapshot = (value) => structuredClone(value);
  set(messages) {
    this.messages = messages;
    tell({ chat: this.name, messages });
  }
}

class Chat extends AbstractChat {
  constructor(name, id, messages) {
    super({
      id,
      state: new State(name, messages),
      transport: new DefaultChatTransport({ api, headers: { Cookie: cookie } }),
      sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
      onData: (part) => tell({ chat: name, data: part }),
      onFinish: ({ finishReason, isError }) => tell({ chat: name, finished: finishReason ?? null, isError }),
      onError: (error) => tell({ chat: name, error: error.message }),
    });
  }
}

const chats = {};
for await (const line of createInterface({ input: process.stdin })) {
  const { chat: name, id, messages, send, body, approve, resume, stop, regenerate } = JSON.parse(line);
  if (id !== undefined) delete chats[name];
  const chat = (chats[name] ??= new Chat(name, id ?? name, messages ?? []));
  const done = (what) => () => tell({ chat: name, done: what, status: chat.status });
  if (send !== undefined) chat.sendMessage(send, { body }).then(done("send"));
  if (approve !== undefined) chat.addToolApprovalResponse(approve).then(done("approve"));
  if (resume) chat.resumeStream().then(done("resume"));
  if (regenerate) chat.regenerate().then(done("regenerate"));
  if (stop) chat.stop().then(done("stop"));
}
