"""Shows an approval of one dangerous tool: with a rule on its arguments, and a time limit that counts as a no."""

from datetime import timedelta

import vercel_ai_sdk as ai
from shared import QUEUE, calls, make_worker, results, run, says, scripted
from temporalio import workflow
from temporalio.client import Client

from bridge.wire import text_of
from durable import TemporalLanguageModel, temporal_tool
from options.approvals import APPROVAL, Approval, ask_a_person_if, open_questions


@ai.tool
async def charge(customer: str, amount: int) -> str:
    """Charge a customer's card."""
    print(f"  charged {customer} {amount}")
    return f"{customer} was charged {amount}"


temporal_tool(charge, before=ask_a_person_if(lambda amount: amount > 100, timeout=timedelta(seconds=3)))


async def cashier(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=query), [charge])


@workflow.defn
class CashierWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        answer = ""
        async for message in ai.run(cashier, TemporalLanguageModel("scripted"), query):
            answer = text_of(message)
        return answer


async def script(model: str, messages: list[ai.Message]) -> ai.Message:
    done = results(messages)
    bills: list[dict[str, object]] = [
        {"customer": "Ada", "amount": 50},
        {"customer": "Ben", "amount": 500},
        {"customer": "Cleo", "amount": 900},
    ]
    return says("\n".join(done)) if done else calls("charge", *bills)


async def main(client: Client) -> None:
    async with make_worker(client, CashierWorkflow):
        handle = await client.start_workflow(CashierWorkflow.run, "Collect the bills", id=QUEUE, task_queue=QUEUE)
        # A person, who allows what Ben has to pay, and does not answer for Cleo. Any process could do this.
        asked: set[str] = set()
        async for event in handle.fetch_history_events(wait_new_event=True):
            if not event.HasField("workflow_properties_modified_event_attributes"):
                continue
            for call, question in open_questions(await (await handle.describe()).memo()).items():
                if call not in asked:
                    asked.add(call)
                    print(f"? {question}")
                    if "Ben" in question:
                        await handle.execute_update(APPROVAL, Approval(call=call, approved=True))
        print(await handle.result())


if __name__ == "__main__":
    run(main, scripted(script))
